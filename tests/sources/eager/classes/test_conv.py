from __future__ import annotations

import warnings

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn
from torch.nn import functional as F

from qdeq import QdeqError
from qdeq.layers import fused
from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import (
    ENGINES,
    SCHEMES,
    build,
    check_dynamic_output,
    check_weight_and_bias,
    rebuilt_and_report,
)

GEOMETRIES = [
    {"stride": 1, "padding": 0, "dilation": 1, "groups": 1},
    {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
    {"stride": 1, "padding": 1, "dilation": 1, "groups": 4},
]
KINDS = [
    (nnq.Conv1d, nn.Conv1d),
    (nnq.Conv2d, nn.Conv2d),
    (nnq.Conv3d, nn.Conv3d),
    (nnqd.Conv1d, nn.Conv1d),
    (nnqd.Conv2d, nn.Conv2d),
    (nnqd.Conv3d, nn.Conv3d),
    (nniq.ConvReLU1d, fused.ConvReLU1d),
    (nniq.ConvReLU2d, fused.ConvReLU2d),
    (nniq.ConvReLU3d, fused.ConvReLU3d),
    (nniq.ConvAdd2d, fused.ConvAdd2d),
    (nniq.ConvAddReLU2d, fused.ConvAddReLU2d),
]


def name_of(value):
    return f"{value.__module__.split('.modules')[0].removeprefix('torch.ao.nn.')}.{value.__name__}"


# torch cannot unpack a 3d convolution of qnnpack: test_qnnpack_3d_is_refused.
COMBINATIONS = [
    pytest.param(backend, kind, target, id=f"{backend}-{name_of(kind)}")
    for backend in ENGINES
    for kind, target in KINDS
    if not (backend == "qnnpack" and "3d" in kind.__name__)
]


@SCHEMES
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["plain", "strided", "depthwise"])
@pytest.mark.parametrize(("backend", "kind", "target"), COMBINATIONS)
def test_weight_bias_and_geometry(kind, target, geometry, per_channel, backend):
    torch.manual_seed(11)
    for bias in (True, False):
        module = build(kind, 4, 8, 3, backend=backend, bias=bias, per_channel=per_channel, **geometry)
        rebuilt, report = rebuilt_and_report(module)
        assert type(rebuilt) is target
        check_weight_and_bias(module, rebuilt, backend=backend)
        for name in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
            assert getattr(rebuilt, name) == getattr(module, name), name
        assert ("0" in report.activation_qparams) == (".dynamic" not in kind.__module__)
        assert {"0.scale", "0.zero_point"} <= {item.source for item in report.dropped}


@pytest.mark.parametrize("kind", [nnq.Conv1d, nnq.Conv2d])
def test_padding_mode_is_kept(kind):
    module = build(kind, 4, 4, 3, backend="fbgemm", padding=1, padding_mode="reflect")
    rebuilt, _ = rebuilt_and_report(module)
    dims = 1 if kind is nnq.Conv1d else 2
    x = torch.quantize_per_tensor(torch.rand(2, 4, *[9] * dims), 1 / 127, 0, torch.quint8)
    module.scale, module.zero_point = 0.5, 128
    difference = module(x).dequantize() - rebuilt(x.dequantize()).clamp(-64, 63.5)
    assert rebuilt.padding_mode == "reflect"
    assert difference.abs().max() <= 0.25 + 1e-4, "half a step"


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_held_relu_is_applied(dims):
    kind = getattr(nniq, f"ConvReLU{dims}d")
    rebuilt, _ = rebuilt_and_report(build(kind, 4, 4, 3, backend="fbgemm"))
    x = torch.randn(2, 4, *[7] * dims)
    plain = getattr(F, f"conv{dims}d")(x, rebuilt.weight, rebuilt.bias)
    assert (plain < 0).any()
    assert_same_bits(rebuilt(x), F.relu(plain))


def test_the_two_input_modules_add_before_the_relu():
    x, extra = torch.randn(2, 4, 7, 7), torch.randn(2, 4, 5, 5)
    add, _ = rebuilt_and_report(build(nniq.ConvAdd2d, 4, 4, 3, backend="fbgemm"))
    add_relu, _ = rebuilt_and_report(build(nniq.ConvAddReLU2d, 4, 4, 3, backend="fbgemm"))
    assert_same_bits(add(x, extra), F.conv2d(x, add.weight, add.bias) + extra)
    assert_same_bits(add_relu(x, extra), F.relu(F.conv2d(x, add_relu.weight, add_relu.bias) + extra))
    assert set(add.state_dict()) == {"weight", "bias"}


@pytest.mark.skipif("onednn" not in ENGINES, reason="these ops exist for onednn only")
@pytest.mark.parametrize("kind", [nniq.ConvAdd2d, nniq.ConvAddReLU2d])
def test_the_two_input_modules_compute_what_onednn_computes(kind):
    torch.manual_seed(5)
    module = build(kind, 4, 4, 3, backend="onednn")
    module.scale, module.zero_point = 0.5, 64
    rebuilt, _ = rebuilt_and_report(module)
    # 7 bits, so that no CPU saturates.
    x = torch.quantize_per_tensor(torch.rand(2, 4, 9, 9), 1 / 127, 0, torch.quint8)
    extra = torch.quantize_per_tensor(torch.randn(2, 4, 7, 7), 0.05, 60, torch.quint8)
    with engine("onednn"):
        expected = module(x, extra)
    actual = torch.quantize_per_tensor(rebuilt(x.dequantize(), extra.dequantize()), 0.5, 64, torch.quint8)
    steps = (actual.int_repr().int() - expected.int_repr().int()).abs()
    assert steps.max() <= 1
    assert (steps == 0).float().mean() > 0.99


@pytest.mark.parametrize(
    ("backend", "dims"), [(name, dims) for name in ENGINES for dims in (1, 2, 3) if (name, dims) != ("qnnpack", 3)]
)
def test_dynamic_convolutions_compute_what_torch_computes(dims, backend):
    torch.manual_seed(14)
    module = build(getattr(nnqd, f"Conv{dims}d"), 4, 6, 3, backend=backend, padding=1)
    rebuilt, _ = rebuilt_and_report(module)
    check_dynamic_output(module, rebuilt, 4 * torch.randn(16, 4, *[9] * dims), backend)


@pytest.mark.skipif("qnnpack" not in ENGINES, reason="this torch has no qnnpack")
@pytest.mark.parametrize("kind", [nnq.Conv3d, nnqd.Conv3d, nniq.ConvReLU3d])
def test_qnnpack_3d_is_refused(kind):
    with engine("qnnpack"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The current implementation of the")
        module = kind(4, 4, 3)
    with pytest.raises(QdeqError, match=r"(?i)^0.*qnnpack"):
        rebuilt_and_report(module)
