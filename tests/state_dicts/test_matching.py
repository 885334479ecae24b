"""State dicts of quantized models into a float model: all of it, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

import qdeq
from tests.files.torch_archive import models
from tests.files.torch_archive.conftest import build
from tests.files.torch_archive.forms import bits, check_equal, poisoned
from tests.state_dicts.sources import SOURCES


@pytest.mark.parametrize("source", list(SOURCES))
def test_into_loads_the_float_class(source: str, tmp_path: Path) -> None:
    case = build("vgg")
    target = poisoned(models.TinyVGG())
    found, report = qdeq.dequantize_state_dict(SOURCES[source](case.model, tmp_path), into=target)
    check_equal(dict(target.state_dict()), case.expected)
    check_equal(found, case.expected)
    assert all(entry.target_class.startswith("torch.nn") for entry in report.entries)


def test_into_rnns() -> None:
    case = build("dynamic")
    target = poisoned(models.Recurrent())
    qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    check_equal(dict(target.state_dict()), case.expected)


INPUTS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "vgg": (models.TinyVGG, lambda: (torch.randn(4, 3, 8, 8),)),
    "dynamic": (models.Recurrent, lambda: (torch.randn(5, 3, 8),)),
    "dynamic_fp16": (models.Recurrent, lambda: (torch.randn(5, 3, 8),)),
    "embedding": (models.Tables, lambda: (torch.randint(0, 20, (12,)), torch.tensor([0, 3, 7, 12]))),
}


@pytest.mark.parametrize("name", list(INPUTS))
@pytest.mark.parametrize("source", list(SOURCES))
def test_into_gives_the_outputs_of_the_rebuilt_model(name: str, source: str, tmp_path: Path) -> None:
    case = build(name)
    make, inputs = INPUTS[name]
    target, x = poisoned(make()), inputs()
    qdeq.dequantize_state_dict(SOURCES[source](case.model, tmp_path), into=target)
    rebuilt = qdeq.dequantize_model(case.model)
    with torch.no_grad():
        assert torch.equal(bits(target(*x)), bits(rebuilt(*x)))


def test_into_a_functional_model_gives_the_outputs_of_its_weights() -> None:
    """An FX graph, which ``dequantize_model`` refuses: beside the same class with the weights put in by hand."""
    case = build("fx")
    target, by_hand = poisoned(models.Functional()), models.Functional()
    qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    names = {"w": "_packed_weight_1.weight", "b": "_packed_weight_1.bias", "cw": "_packed_weight_0.weight"}
    names |= {f"last.{part}": f"last.{part}" for part in ("weight", "bias")}
    by_hand.load_state_dict({name: case.expected[key] for name, key in names.items()})
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(bits(target(x)), bits(by_hand(x)))


def test_into_a_class_that_still_has_batch_norms() -> None:
    """The norms become exact identities, and the folded bias goes to the norm of a layer without one."""
    case = build("vgg_bn")
    target = poisoned(models.TinyVGG(norm=True))
    _, report = qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    assert not any(torch.isnan(v).any() for v in target.state_dict().values() if v.is_floating_point())
    first, second = target.features[1], target.features[4]
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(bits(first(x)), bits(x))
    assert torch.equal(bits(second.bias), bits(case.expected["features.3.bias"]))
    assert {"features.1", "features.4"} <= set(report.notes)
    rebuilt = qdeq.dequantize_model(case.model)
    images = torch.randn(4, 3, 8, 8)
    assert torch.allclose(target(images), rebuilt(images), atol=1e-5)


def test_norms_of_a_double_model_are_identities_in_double() -> None:
    target = poisoned(models.TinyVGG(norm=True).double())
    qdeq.dequantize_state_dict(build("vgg_bn").model.state_dict(), into=target)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    assert torch.equal(target.features[1](x), x)


def test_a_norm_that_cannot_be_an_identity_is_named() -> None:
    target = models.TinyVGG(norm=True)
    target.features[1].eps = 1.5
    with pytest.raises(qdeq.QdeqValueError, match="eps: expected an eps below 1, got 1.5"):
        qdeq.dequantize_state_dict(build("vgg_bn").model.state_dict(), into=target)


def test_into_names_unused_sources_and_missing_parameters_and_changes_nothing() -> None:
    case = build("vgg")
    target = models.TinyVGG()
    target.extra = nn.Linear(2, 2)
    del target.classifier[2]
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(qdeq.QdeqValueError) as caught:
        qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    for name in ("extra.weight", "extra.bias", "classifier.2._packed_params._packed_params"):
        assert name in str(caught.value)
    check_equal(dict(target.state_dict()), dict(before))


def test_into_not_strict_loads_the_rest_and_says_so() -> None:
    case = build("vgg")
    target = poisoned(models.TinyVGG())
    target.extra = nn.Linear(2, 2)
    _, report = qdeq.dequantize_state_dict(case.model.state_dict(), into=target, strict=False)
    assert "extra.weight" in report.notes
    check_equal({k: v for k, v in target.state_dict().items() if not k.startswith("extra")}, case.expected)


def test_into_wrong_shape_changes_nothing() -> None:
    case = build("vgg")
    target = models.TinyVGG()
    target.classifier[2] = nn.Linear(8, 6, bias=False)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(qdeq.QdeqValueError, match=r"classifier.2.weight.*\(6, 8\).*\(5, 8\)"):
        qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    check_equal(dict(target.state_dict()), dict(before))


def test_into_bad_scale_changes_nothing() -> None:
    case = build("vgg")
    state = dict(case.model.state_dict())
    bad = torch._make_per_tensor_quantized_tensor(state["features.0.weight"].int_repr(), float("nan"), 0)
    state["features.0.weight"] = bad
    target = models.TinyVGG()
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(qdeq.QdeqError, match=r"features.0.weight"):
        qdeq.dequantize_state_dict(state, into=target)
    check_equal(dict(target.state_dict()), dict(before))


def test_into_a_tensor_that_cannot_be_written_changes_nothing() -> None:
    """The error comes in the middle, after other parameters were written."""
    case = build("vgg")
    target = models.TinyVGG()
    target.classifier[2].weight = nn.Parameter(torch.zeros(1, 8).expand(5, 8), requires_grad=False)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(qdeq.QdeqValueError, match=r"into: classifier.2.weight: expected a tensor that can be written"):
        qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    check_equal(dict(target.state_dict()), dict(before))


def test_an_interrupt_in_the_middle_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build("vgg")
    target = models.TinyVGG()
    before = copy.deepcopy(target.state_dict())
    copy_, calls = Tensor.copy_, []

    def interrupted(self: Tensor, other: Tensor) -> Tensor:
        calls.append(other)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return copy_(self, other)

    monkeypatch.setattr(Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    monkeypatch.undo()
    check_equal(dict(target.state_dict()), dict(before))


def test_into_another_prefix() -> None:
    case = build("vgg")
    target = poisoned(models.TinyVGG())
    wrapped = {f"module.{key}": value for key, value in case.model.state_dict().items()}
    _, report = qdeq.dequantize_state_dict(wrapped, into=target)
    check_equal(dict(target.state_dict()), case.expected)
    assert f"'module.' -> '' ({len(case.expected)} names)" in report.notes[""][0]


def test_into_functional_weights_are_matched_by_shape() -> None:
    case = build("fx")
    target = poisoned(models.Functional())
    _, report = qdeq.dequantize_state_dict(case.model.state_dict(), into=target)
    assert torch.equal(bits(target.w), bits(case.expected["_packed_weight_1.weight"]))
    assert torch.equal(bits(target.cw), bits(case.expected["_packed_weight_0.weight"]))
    assert any("only one of this shape" in entry.note for entry in report.entries)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight


def test_into_tied_weights() -> None:
    model = tq.quantize_dynamic(Tied().eval(), {nn.Linear})
    target = poisoned(Tied())
    _, report = qdeq.dequantize_state_dict(model.state_dict(), into=target)
    assert torch.equal(bits(target.a.weight), bits(model.a.weight().dequantize()))
    assert any("tied to a.weight" in entry.note for entry in report.entries)
    other = dict(model.state_dict())
    weight, bias = other["b._packed_params._packed_params"]
    other["b._packed_params._packed_params"] = (
        torch.quantize_per_tensor(weight.dequantize() + 1, 0.1, 0, torch.qint8),
        bias,
    )
    with pytest.raises(qdeq.QdeqValueError, match="tied"):
        qdeq.dequantize_state_dict(other, into=poisoned(Tied()))


def test_prelu_slopes_are_not_in_a_state_dict() -> None:
    class WithPReLU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(4, 4), nn.PReLU()

    state = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}).state_dict()
    state = {key.replace("0.", "fc.", 1): value for key, value in state.items()}
    with pytest.raises(qdeq.QdeqValueError, match=r"act.weight.*does not hold act.weight"):
        qdeq.dequantize_state_dict(state, into=WithPReLU())
