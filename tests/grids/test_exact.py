"""``activations="exact"``: layers give the int8 layers' outputs, all of them; what may give another is named."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

import qdeq
from qdeq.grids import Grid
from qdeq.grids.exact_sums import IntegerSums
from qdeq.grids.trials import Trial, why_not_proven
from tests.grids.models import FUNCTIONS, Functions, Pooled, assert_exact, exact
from tests.helpers.models import assert_same_bits, quantize, small_vgg, tq
from tests.helpers.saturation import assert_same_on_every_cpu
from tests.sources.eager.classes.helpers import ENGINES

pytestmark = pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")


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
