"""The layers of ``activations="exact"``: inputs and sums are rounded as fbgemm rounds them, to the last bit."""

from __future__ import annotations

import sys
from fractions import Fraction

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from qdeq.grids.exact_sums import _multiply_add
from tests.grids.models import assert_exact, exact
from tests.grids.test_single_layers import cases, converted, values
from tests.helpers.models import assert_same_bits, engine
from tests.helpers.saturation import assert_same_on_every_cpu
from tests.sources.eager.classes.helpers import ENGINES

pytestmark = pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
SUMS = [name for name in cases() if "Conv" in name or "Linear" in name]
COVERED = {"ELU", "Hardswish", "LeakyReLU", "ReLU6", "Sigmoid", "Dropout", *SUMS}


@pytest.mark.parametrize("name", cases())
def test_every_layer_is_exact_or_named(name):
    torch.manual_seed(41)
    case = cases()[name]
    with engine("fbgemm"), torch.no_grad():
        model = converted(case, "fbgemm")
        rebuilt, uncovered = exact(model)
        x = values((64, *case.shape[1:]))
        assert_same_on_every_cpu(model, x)
        if uncovered:
            assert name not in COVERED
            assert [text.partition(":")[0] for text in uncovered] == ["1"]
        else:
            assert_same_bits(rebuilt(x), model(x))


@pytest.mark.parametrize("backend", [name for name in ENGINES if name != "fbgemm"])
@pytest.mark.parametrize("name", ["LinearReLU", "Conv2d"])
def test_layers_of_other_engines_are_named(name, backend):
    """``x86`` packs with fbgemm or with onednn, by CPU."""
    torch.manual_seed(42)
    case = cases()[name]
    with engine(backend), torch.no_grad():
        model = converted(case, backend)
        rebuilt, uncovered = exact(model)
        x = values(case.shape)
        assert (rebuilt(x) == model(x)).all() if not uncovered else "only the rounding of fbgemm" in uncovered[0]
        assert bool(uncovered) or backend == "x86"


@pytest.mark.parametrize("zero_point", [0, 7, 64, 255])
def test_inputs_are_rounded_as_torch_quantizes_them(zero_point):
    """Half of the values lie as near to a tie as float32 comes; then NaN, infinities and what no int32 holds."""
    torch.manual_seed(48)
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e8, -3e8, 0.0, -0.0])
    for scale in (0.1714, 0.0677):
        x = torch.randn(100_000)
        x = torch.cat([x, (torch.randint(-512, 512, (100_000,)) / 2 * scale), special])
        model = nn.Sequential(nnq.Quantize(scale, zero_point, torch.quint8), nnq.DeQuantize())
        assert_exact(model, x)


def one_layer(
    weight: Tensor, bias: Tensor | None, scale: float, zero_point: int, kind: type[nnq.Linear] = nnq.Linear
) -> nn.Module:
    """An int8 Linear between an input of scale 0.05, zero point 10, and float."""
    with engine("fbgemm"):
        layer = kind(weight.shape[1], weight.shape[0])
        layer.set_weight_bias(weight, bias)
    layer.scale, layer.zero_point = scale, zero_point
    return nn.Sequential(nnq.Quantize(0.05, 10, torch.quint8), layer, nnq.DeQuantize()).eval()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_millions_of_sums_are_rounded_as_fbgemm_rounds_them(per_channel, bias):
    """So many that some lie a millionth of a step beside a tie: another order of the float operations is seen."""
    torch.manual_seed(43)
    weight = torch.randn(37, 24)
    if per_channel:
        scales = torch.empty(37, dtype=torch.float64).uniform_(0.02, 0.04)
        weight = torch.quantize_per_channel(weight, scales, torch.zeros(37, dtype=torch.long), 0, torch.qint8)
    else:
        weight = torch.quantize_per_tensor(weight, 0.03123, 5, torch.qint8)
    model = one_layer(weight, 3 * torch.randn(37) if bias else None, 0.2371, 91)
    x = (torch.randint(0, 128, (60_000, 24)) - 10) * 0.05
    assert_exact(model, x)


@pytest.mark.parametrize("per_channel", [True, False])
def test_sums_that_lie_halfway_go_where_fbgemm_sends_them(per_channel):
    """Each bias is a number of steps of its sums, as near as float32 comes; two of those are one step of the output."""
    if not per_channel and sys.platform != "linux":
        pytest.skip("one scale for all: whether multiply and add are fused is the compiler's choice, GCC's here")
    torch.manual_seed(50)
    weight, scale = torch.randint(-20, 20, (64, 16)) * 0.0237, torch.tensor(0.0237)
    scales = torch.full((64,), float(scale), dtype=torch.float64)
    if per_channel:
        weight = torch.quantize_per_channel(weight, scales, torch.zeros(64, dtype=torch.long), 0, torch.qint8)
    else:
        weight = torch.quantize_per_tensor(weight, float(scale), 0, torch.qint8)
    both = torch.tensor(0.05) * scale
    bias = torch.randint(-3000, 3000, (64,)) * both
    x = (torch.randint(0, 128, (2000, 16)) - 10) * 0.05
    assert_exact(one_layer(weight, bias, float(2 * both) * 8, 91), x)
    assert_exact(one_layer(weight, bias, float(2 * both), 91), x / 8)


def test_a_layer_that_keeps_its_relu_is_exact():
    torch.manual_seed(51)
    weight = torch.quantize_per_tensor(torch.randn(8, 16), 0.03, 0, torch.qint8)
    model = one_layer(weight, torch.randn(8), 0.07, 91, nniq.LinearReLU)
    rebuilt = assert_exact(model, torch.randn(100, 16))
    assert type(rebuilt[1]).__name__ == "LinearReLU"
    with torch.no_grad():
        assert (rebuilt(torch.randn(100, 16)) == 0).any()


def test_what_exceeds_32_bits_becomes_the_lowest_value_as_in_the_int8_kernel():
    """A layer calibrated on zeros has a tiny scale: 2**31 of its steps are reached soon."""
    weight = torch.quantize_per_tensor(torch.eye(8), 0.01, 0, torch.qint8)
    model = one_layer(weight, None, 1e-9, 3)
    x = torch.tensor([-3.0, -2.0, -0.1, 0.0, 0.1, 2.0, 2.2, 5.0]).repeat(8, 1)
    with torch.no_grad():
        assert len(model(x).unique()) > 1
    assert_exact(model, x)


def test_a_fused_multiply_add_is_rounded_once():
    torch.manual_seed(44)
    a, b, c = (torch.randn(4000) * 2.0 ** torch.randint(-12, 12, (4000,)) for _ in range(3))
    a[:3], b[:3] = 1 + 2**-12, 1 + 2**-12
    c[:3] = torch.tensor([2.0**-70, -(2.0**-70), 1.0])  # beside a tie by less than float64 holds
    for *given, result in zip(a.tolist(), b.tolist(), c.tolist(), _multiply_add(a, b, c).tolist(), strict=True):
        true = Fraction(given[0]) * Fraction(given[1]) + Fraction(given[2])
        near = torch.tensor(result)
        beside = [float(torch.nextafter(near, torch.tensor(end))) for end in (-torch.inf, torch.inf)]
        assert all(abs(Fraction(result) - true) <= abs(Fraction(other) - true) for other in beside)
