from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from tests.helpers.models import engine
from tests.modules.helpers import ENGINES, ON_ENGINES, SCHEMES, build, check_weight_and_bias, rebuilt_and_report

GEOMETRIES = [
    {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "groups": 2},
]


@ON_ENGINES
@SCHEMES
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["plain", "strided", "output_padding"])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("package", [nnq, nnqd], ids=["static", "dynamic"])
def test_weight_bias_and_geometry(package, dims, geometry, per_channel, backend):
    if backend == "qnnpack" and dims == 3:
        pytest.skip("torch cannot unpack a 3d convolution of qnnpack")
    if backend == "onednn" and "output_padding" in geometry:
        pytest.skip("onednn packs no output_padding")
    if per_channel and (backend != "qnnpack" or geometry["groups"] > 1):
        pytest.skip("torch packs per-channel transposed convolutions for qnnpack only, and of one group")
    torch.manual_seed(12)
    kind = getattr(package, f"ConvTranspose{dims}d")
    for bias in (True, False):
        module = build(kind, 4, 6, 3, backend=backend, bias=bias, per_channel=per_channel, **geometry)
        rebuilt, report = rebuilt_and_report(module)
        assert type(rebuilt) is getattr(nn, f"ConvTranspose{dims}d")
        check_weight_and_bias(module, rebuilt, backend=backend)
        for name in ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode", "kernel_size"):
            assert getattr(rebuilt, name) == getattr(module, name), name
        assert ("0" in report.activation_qparams) == (package is nnq)


@pytest.mark.parametrize("backend", [name for name in ENGINES if name in ("fbgemm", "qnnpack")])
@pytest.mark.parametrize("dims", [1, 2])
def test_it_computes_what_the_int8_module_computes(dims, backend):
    """onednn's forward of a ConvTranspose is wrong in torch; x86 leaves these layers to onednn on some CPUs."""
    torch.manual_seed(13)
    module = build(getattr(nnq, f"ConvTranspose{dims}d"), 4, 6, 3, backend=backend, stride=2, padding=1)
    module.scale, module.zero_point = 0.5, 128
    rebuilt, _ = rebuilt_and_report(module)
    x = torch.quantize_per_tensor(torch.rand(2, 4, *[9] * dims), 1 / 127, 0, torch.quint8)
    with engine(backend):
        expected = module(x).int_repr().int()
    actual = torch.quantize_per_tensor(rebuilt(x.dequantize()), 0.5, 128, torch.quint8).int_repr().int()
    assert (actual - expected).abs().max() <= 1
    assert (actual == expected).float().mean() > 0.99
