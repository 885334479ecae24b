from __future__ import annotations

import itertools
import warnings

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq import QdeqError
from tests.helpers.models import engine
from tests.sources.eager.classes.helpers import (
    ENGINES,
    build,
    check_dynamic_output,
    check_weight_and_bias,
    rebuilt_and_report,
)

GEOMETRIES = [
    {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2, "groups": 2},
]


IDS = ["plain", "strided", "output_padding"]


def packs(backend: str, geometry: dict[str, int], per_channel: bool) -> bool:
    """Whether torch packs such a layer at all; test_torch_packs_no_other_combination shows that it refuses the rest."""
    return not (per_channel and backend != "qnnpack") and not (backend == "onednn" and "output_padding" in geometry)


COMBINATIONS = [
    pytest.param(backend, dims, geometry, per_channel, id=f"{backend}-{dims}d-{name}-{scheme}")
    for backend in ENGINES
    for dims in (1, 2, 3)
    for geometry, name in zip(GEOMETRIES, IDS, strict=True)
    for per_channel, scheme in ((False, "per_tensor"), (True, "per_channel"))
    if packs(backend, geometry, per_channel) and not (backend == "qnnpack" and dims == 3)
]


@pytest.mark.parametrize(("backend", "dims", "geometry", "per_channel"), COMBINATIONS)
@pytest.mark.parametrize("package", [nnq, nnqd], ids=["static", "dynamic"])
def test_weight_bias_and_geometry(package, dims, geometry, per_channel, backend):
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


@pytest.mark.parametrize("package", [nnq, nnqd], ids=["static", "dynamic"])
def test_torch_packs_no_other_combination(package):
    """When torch learns one of these, COMBINATIONS gets it."""
    left_out = [
        (backend, dims, geometry, per_channel)
        for backend, dims, geometry, per_channel in itertools.product(ENGINES, (1, 2, 3), GEOMETRIES, (False, True))
        if not packs(backend, geometry, per_channel)
    ]
    assert left_out
    for backend, dims, geometry, per_channel in left_out:
        kind = getattr(package, f"ConvTranspose{dims}d")
        with pytest.raises(RuntimeError, match=r"Per Channel Quantization is currently disabled|zero output_padding"):
            build(kind, 4, 6, 3, backend=backend, per_channel=per_channel, **geometry)


@pytest.mark.skipif("qnnpack" not in ENGINES, reason="this torch has no qnnpack")
@pytest.mark.parametrize("package", [nnq, nnqd], ids=["static", "dynamic"])
def test_qnnpack_3d_is_refused(package):
    """torch packs it and cannot unpack it again."""
    with engine("qnnpack"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The current implementation of the")
        module = package.ConvTranspose3d(4, 4, 3)
    with pytest.raises(QdeqError, match=r"(?i)^0.*qnnpack"):
        rebuilt_and_report(module)


# onednn's forward of a ConvTranspose is wrong in torch, and x86 leaves these layers to onednn on some CPUs.
RIGHT_FORWARDS = [
    (name, dims)
    for name in ENGINES
    if name in ("fbgemm", "qnnpack")
    for dims in (1, 2, 3)
    if (name, dims) != ("qnnpack", 3)
]


@pytest.mark.parametrize(("backend", "dims"), RIGHT_FORWARDS)
def test_it_computes_what_the_int8_module_computes(dims, backend):
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


@pytest.mark.parametrize(("backend", "dims"), RIGHT_FORWARDS)
def test_dynamic_ones_compute_what_torch_computes(dims, backend):
    torch.manual_seed(15)
    module = build(getattr(nnqd, f"ConvTranspose{dims}d"), 4, 6, 3, backend=backend, stride=2, padding=1)
    rebuilt, _ = rebuilt_and_report(module)
    check_dynamic_output(module, rebuilt, 4 * torch.randn(16, 4, *[9] * dims), backend)
