"""State dicts of quantized models to float ones: names and bits."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

import qdeq
from tests.files.torch_archive import models
from tests.files.torch_archive.conftest import Case, build, live_weights
from tests.files.torch_archive.forms import bits, check_equal, poisoned
from tests.state_dicts.sources import SOURCES


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
