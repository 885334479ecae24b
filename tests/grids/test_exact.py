"""``activations="exact"``: layers give the int8 layers' outputs, all of them; what may give another is named."""

from __future__ import annotations

import copy
import pickle
import sys
from fractions import Fraction

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

import qdeq
from qdeq.grids import Grid
from qdeq.grids.exact_sums import IntegerSums, _multiply_add
from qdeq.grids.trials import Trial, why_not_proven
from tests.grids.models import FUNCTIONS, Functions, Pooled
from tests.grids.test_single_layers import cases, converted, values
from tests.helpers.models import assert_same_bits, engine, quantize, small_vgg, tq
from tests.helpers.saturation import assert_same_on_every_cpu
from tests.sources.eager.classes.helpers import ENGINES

pytestmark = pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
SUMS = [name for name in cases() if "Conv" in name or "Linear" in name]
COVERED = {"ELU", "Hardswish", "LeakyReLU", "ReLU6", "Sigmoid", "Dropout", *SUMS}


def exact(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The rebuilt model, and why which operations are not exact."""
    rebuilt, report = qdeq.dequantize_model(model, activations="exact", return_report=True)
    return rebuilt, [f"{item.path}: {item.operation}: {item.reason}" for item in report.uncovered]


def assert_exact(model: nn.Module, x: Tensor) -> nn.Module:
    rebuilt, uncovered = exact(model)
    assert uncovered == []
    assert_same_on_every_cpu(model, x)
    with torch.no_grad():
        assert_same_bits(rebuilt(x), model(x))
    return rebuilt


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


@pytest.mark.parametrize("bn", [False, True])
def test_a_network_is_exact_and_stays_so_when_copied_or_pickled(bn):
    model = small_vgg(bn=bn, same_on_every_cpu=True)
    x = torch.randn(64, 3, 16, 16)
    rebuilt = assert_exact(model, x)
    with torch.no_grad():
        expected = model(x)
        for other in (copy.deepcopy(rebuilt), pickle.loads(pickle.dumps(rebuilt)), rebuilt.double()):
            assert_same_bits(other(x.to(other.classifier[0].weight.dtype)).float(), expected)


def test_parameters_and_classes_are_those_of_drop():
    model = small_vgg()
    rebuilt, drop = exact(model)[0], qdeq.dequantize_model(model)
    for name, value in drop.named_parameters():
        assert_same_bits(rebuilt.get_parameter(name), value)
    assert [type(module) for module in drop.modules()] == [
        type(module) for name, module in rebuilt.named_modules() if "activation_post_process" not in name
    ]
    own = "features.0.activation_post_process."
    buffers = {"scale", "zero_point", "input_scale", "weight_scale", "weight_zero_point"}
    assert {name.removeprefix(own) for name in rebuilt.state_dict() if name.startswith(own)} == buffers
    dropped = qdeq.drop_activations(rebuilt)
    assert str(dropped) == str(drop)
    assert list(dropped.state_dict()) == list(drop.state_dict())
    assert not any(module._forward_hooks for module in dropped.modules())
    x = torch.randn(4, 3, 16, 16)
    assert_same_bits(dropped(x), drop(x))


def test_gradients_are_those_of_fake_quant():
    torch.manual_seed(45)
    model = quantize(nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 4, 3), tq.DeQuantStub()), torch.randn(4, 3, 8, 8))
    x = 2 * torch.randn(4, 3, 8, 8)  # some beyond the range, where the gradient is 0
    gradients = []
    for mode in ("fake_quant", "exact"):
        rebuilt = qdeq.dequantize_model(model, activations=mode)
        given = x.clone().requires_grad_()
        rebuilt(given).square().sum().backward()
        gradients.append([given.grad, *(parameter.grad for parameter in rebuilt.parameters())])
    for fake, own in zip(*gradients, strict=True):
        assert float(fake.abs().sum()) > 0
        assert torch.allclose(fake, own, rtol=1e-3, atol=1e-3 * float(fake.abs().max()))


def test_a_trained_layer_rounds_its_weight_to_the_grid_and_drops_to_what_was_trained():
    torch.manual_seed(46)
    rebuilt, _ = exact(small_vgg())
    before = rebuilt.classifier[3].weight.detach().clone()
    rebuilt(torch.randn(8, 3, 16, 16)).square().sum().backward()
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter -= 0.1 * parameter.grad
    trained = qdeq.drop_activations(rebuilt).classifier[3].weight
    assert_same_bits(trained, rebuilt.classifier[3].weight)
    assert not torch.equal(trained, before)


@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_exact_or_named(name):
    torch.manual_seed(47)
    model = quantize(Functions(name), torch.randn(8, 3, 12, 12))
    rebuilt, uncovered = exact(model)
    x = torch.randn(32, 3, 12, 12)
    assert_same_on_every_cpu(model, x)
    averages = ("avg_pool2d", "avg_pool2d padded", "adaptive_avg_pool2d", "mean", "bilinear", "chain")
    if name in averages:
        assert uncovered
    elif uncovered:
        assert "of 256 values" in uncovered[0] or "of 65536 pairs of values" in uncovered[0]
    else:
        with torch.no_grad():
            assert_same_bits(rebuilt(x), model(x))


def test_an_addition_full_of_ties_is_named():
    """Half a step beside every second sum: torch rounds it by where in the tensor it lies."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.add, self.dequant = nnq.Quantize(0.3, 5, torch.quint8), nnq.QFunctional(), nnq.DeQuantize()
            self.add.scale, self.add.zero_point = 0.6, 7

        def forward(self, x: Tensor) -> Tensor:
            x = self.quant(x)
            return self.dequant(self.add.add(x, x))

    model = Sum()
    model.add.scale = 0.6 * 2
    assert "pairs of values" in exact(model)[1][0]
    model.add.scale = 0.6137
    assert_exact(model, torch.randn(64, 64))


@pytest.mark.parametrize("wrong_in_vectors", [True, False])
def test_both_loops_of_a_kernel_are_tried(wrong_in_vectors):
    grid = Grid(0.1, 7)

    def int8(x: Tensor) -> Tensor:
        moved = x.int_repr().clamp(max=254) + (x.is_contiguous() == wrong_in_vectors)
        return torch._make_per_tensor_quantized_tensor(moved.to(torch.uint8), 0.1, 7)

    top = (254 - 7) * torch.tensor(0.1)
    assert "of 256 values" in why_not_proven(Trial((grid,), int8, lambda x: x.clamp(max=top)))
    assert why_not_proven(Trial((grid,), lambda x: x, lambda x: x)) == ""


def test_an_operation_that_cannot_be_tried_alone_is_named():
    class Bounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant, self.bound = tq.QuantStub(), tq.DeQuantStub(), nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.quant(x).clamp(self.bound, self.bound))

    model = Bounded().eval()
    model.quant = nnq.Quantize(0.1, 5, torch.quint8)
    model.dequant = nnq.DeQuantize()
    assert "cannot be tried alone" in exact(model)[1][0]


def test_a_layer_without_the_grid_of_its_input_is_named():
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc, self.dequant = tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.fc(self.quant(x))) if x.sum() > -1e9 else x

    rebuilt, uncovered = exact(quantize(Untraceable(), torch.randn(8, 4)))
    assert any(text.startswith("fc: ") and "grid of its input" in text for text in uncovered)
    assert not any(isinstance(module, IntegerSums) for module in rebuilt.modules())


def test_a_layer_on_two_grids_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.fc, self.dequant = tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.fc(self.fc(self.quant(x))))

    assert "different scales" in exact(quantize(Twice(), torch.randn(8, 4)))[1][0]


def test_dynamic_layers_are_named():
    model = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)
    assert "at every call" in exact(model)[1][0]


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"unfold_bn": True}, {"unfold_bn": 1e-5}])
def test_what_exact_cannot_go_with_is_refused(options):
    with pytest.raises(qdeq.QdeqValueError, match='with activations="exact"'):
        qdeq.dequantize_model(small_vgg(), activations="exact", **options)


def test_inputs_that_cannot_hold_a_grid_are_refused():
    rebuilt, _ = exact(small_vgg())
    with pytest.raises(qdeq.QdeqTypeError, match="float32 or float64 input, got torch.bfloat16"):
        rebuilt.to(torch.bfloat16)(torch.randn(2, 3, 16, 16, dtype=torch.bfloat16))


def test_averages_between_exact_layers_are_named():
    uncovered = exact(quantize(Pooled(), torch.randn(4, 3, 12, 12)))[1]
    assert len(uncovered) == 1
    assert "halfway between two steps" in uncovered[0]
