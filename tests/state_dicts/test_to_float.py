"""State dicts of quantized models to float ones: names, bits, and loading into a float model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

import qdeq
from tests.archive import models
from tests.archive.conftest import Case, build, live_weights
from tests.archive.forms import bits, check_equal, poisoned

Sources = Callable[[nn.Module, Path], object]
SOURCES: dict[str, Sources] = {
    "state_dict": lambda model, path: model.state_dict(),
    "plain_dict": lambda model, path: dict(model.state_dict()),
    "nested": lambda model, path: {"model": model.state_dict()},
    "archive": lambda model, path: _archived(model, path),
}


def _archived(model: nn.Module, path: Path) -> qdeq.archive.Archive:
    torch.save(model.state_dict(), path / "model.pth")
    return qdeq.open(path / "model.pth")


@pytest.mark.parametrize("name", ["vgg", "vgg_bn", "dynamic", "dynamic_fp16", "embedding", "fx"])
@pytest.mark.parametrize("source", list(SOURCES))
def test_the_live_bits(name: str, source: str, tmp_path: Path) -> None:
    case = build(name)
    found, report = qdeq.dequantize_state_dict(SOURCES[source](case.model, tmp_path))
    prefix = "model." if source == "nested" else ""
    check_equal({key.removeprefix(prefix): value for key, value in found.items()}, case.expected)
    assert {entry.target for entry in report.entries} == set(found)
    assert not any(value.is_quantized or value.requires_grad for value in found.values())


def test_nothing_aliases_the_quantized_model() -> None:
    case = build("vgg")
    found, _ = qdeq.dequantize_state_dict(case.model.state_dict())
    for value in found.values():
        value.fill_(7)
    check_equal(qdeq.dequantize_state_dict(case.model.state_dict())[0], case.expected)


def _linear_versions(case: Case) -> dict[int, dict[str, object]]:
    state = dict(case.model.state_dict())
    key = "classifier.0._packed_params._packed_params"
    weight, bias = state.pop(key)
    state.pop("classifier.0._packed_params.dtype")
    return {
        1: {**state, "classifier.0.weight": weight, "classifier.0.bias": bias},
        2: {**state, "classifier.0._packed_params.weight": weight, "classifier.0._packed_params.bias": bias},
        3: {**state, key: (weight, bias)},
    }


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_linear_keys(version: int, tmp_path: Path) -> None:
    case = build("vgg")
    state = _linear_versions(case)[version]
    check_equal(qdeq.dequantize_state_dict(state)[0], case.expected)
    torch.save(state, tmp_path / "old.pth")
    check_equal(qdeq.dequantize_state_dict(qdeq.open(tmp_path / "old.pth"))[0], case.expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_dtypes_round_the_exact_value(dtype: torch.dtype) -> None:
    case = build("vgg")
    found, _ = qdeq.dequantize_state_dict(case.model.state_dict(), dtype=dtype)
    for name, value in case.expected.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value.to(dtype)), name


def test_activation_qparams_are_returned_apart(tmp_path: Path) -> None:
    case = build("vgg")
    for source in SOURCES.values():
        _, report = qdeq.dequantize_state_dict(source(case.model, tmp_path))
        found = {name.removeprefix("model."): value for name, value in report.activation_qparams.items()}
        layer = case.model.classifier[0]
        assert found["classifier.0"] == pytest.approx((layer.scale, layer.zero_point), rel=1e-6)


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


@pytest.mark.parametrize("eps", [1e-5, 1e-3, 0.1, 1e-12])
def test_identity_variance_is_exact(eps: float) -> None:
    norm = nn.BatchNorm2d(4, eps=eps).eval()
    from qdeq.state_dicts.folding import identity_variance

    with torch.no_grad():
        norm.running_var.fill_(identity_variance("here", eps))  # type: ignore[union-attr]
    x = torch.randn(3, 4, 7, 7) * 1000
    assert torch.equal(bits(norm(x)), bits(x))


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
    assert all("module." in entry.note for entry in report.entries)


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


def test_an_rnn_that_keys_do_not_tell_apart(tmp_path: Path) -> None:
    both, two = nn.LSTM(4, 4, bidirectional=True), nn.LSTM(4, 4, 2)
    for model in (both, two):
        dynamic = tq.quantize_dynamic(nn.Sequential(model), {nn.LSTM})
        state = dynamic.state_dict()
        with pytest.raises(qdeq.QdeqValueError, match="into="):
            qdeq.dequantize_state_dict(state)
        torch.save(state, tmp_path / "lstm.pth")
        with pytest.raises(qdeq.QdeqValueError, match="lstm.pth"):
            qdeq.open(tmp_path / "lstm.pth")
        target = poisoned(nn.Sequential(copy.deepcopy(model)))
        qdeq.dequantize_state_dict(state, into=target)
        check_equal(dict(target.state_dict()), live_weights(dynamic))
        archive = qdeq.open(tmp_path / "lstm.pth", like=target)
        check_equal(qdeq.dequantize_state_dict(archive)[0], live_weights(dynamic))


def _prepared(qat: bool) -> tuple[nn.Module, nn.Module]:
    model = models.TinyVGG(norm=True)
    groups = [["features.0", "features.1", "features.2"], ["features.3", "features.4", "features.5"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fuse = tq.fuse_modules_qat if qat else tq.fuse_modules
        model = fuse(model.train(qat), groups)
        model.qconfig = tq.get_default_qat_qconfig("fbgemm") if qat else tq.get_default_qconfig("fbgemm")
        prepared = tq.prepare_qat(model) if qat else tq.prepare(model)
    prepared(torch.randn(2, 3, 8, 8))
    return prepared.eval(), model


def test_prepared_models_give_their_float_weights() -> None:
    prepared, _ = _prepared(qat=False)
    found, report = qdeq.dequantize_state_dict(prepared.state_dict())
    assert set(found) == set(build("vgg_bn").expected)
    assert torch.equal(found["features.0.weight"], prepared.features[0][0].weight)
    assert torch.equal(found["classifier.0.weight"], prepared.classifier[0].weight)
    assert any("activation_post_process" in item.source for item in report.dropped)


def test_qat_batch_norms_are_folded() -> None:
    prepared, _ = _prepared(qat=True)
    found, report = qdeq.dequantize_state_dict(prepared.state_dict())
    assert set(found) == set(build("vgg_bn").expected)
    layer = prepared.features[0]
    weight, bias = nn.utils.fuse_conv_bn_weights(
        layer.weight,
        layer.bias,
        layer.bn.running_mean,
        layer.bn.running_var,
        layer.bn.eps,
        layer.bn.weight,
        layer.bn.bias,
    )
    assert torch.equal(bits(found["features.0.weight"]), bits(weight))
    assert torch.equal(bits(found["features.0.bias"]), bits(bias))
    assert any("folded" in entry.note for entry in report.entries)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (3, qdeq.QdeqTypeError),
        ({}, qdeq.QdeqValueError),
        ({"a._packed_params._packed_params": (1,)}, qdeq.QdeqValueError),
    ],
)
def test_other_arguments(state: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="dequantize_state_dict"):
        qdeq.dequantize_state_dict(state)  # type: ignore[arg-type]


def test_two_sources_of_one_name() -> None:
    state = {"a.weight": torch.ones(2, 2), "a._packed_params._packed_params": (torch.ones(2, 2), None)}
    with pytest.raises(qdeq.QdeqValueError, match=r"a.weight: expected one source"):
        qdeq.dequantize_state_dict(state)
