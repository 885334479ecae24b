"""The layers of a state dict and of the file that it was saved in are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qdeq.state_dicts.named import named_tensors
from qdeq.weights.weight import QuantizedWeight
from tests.files.torch_archive.conftest import build
from tests.files.torch_archive.forms import bits
from tests.state_dicts.sources import SOURCES
from tests.state_dicts.test_attention import quantized
from tests.state_dicts.test_to_float import _prepared


def floats(tensor):
    value = tensor.value
    return value.dequantize() if isinstance(value, QuantizedWeight) else value


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("name", ["vgg", "embedding", "dynamic"])
def test_every_tensor_with_its_bias_and_scale(name: str, source: str, tmp_path: Path) -> None:
    case = build(name)
    found = {
        tensor.name.removeprefix("model."): tensor
        for tensor in named_tensors("here", SOURCES[source](case.model, tmp_path))
    }
    assert set(found) == set(case.expected)
    for key, tensor in found.items():
        assert torch.equal(bits(floats(tensor)), bits(case.expected[key]))
        if key.endswith(".weight") and key.replace("weight", "bias") in found:
            assert torch.equal(bits(tensor.bias), bits(case.expected[key.replace("weight", "bias")]))
    if name == "vgg":
        layer = case.model.classifier[0]
        assert found["classifier.0.weight"].output == pytest.approx((layer.scale, layer.zero_point), rel=1e-6)
        assert found["classifier.0.weight"].parameter == "weight"


def test_the_parts_of_an_attention_are_one_weight(tmp_path: Path) -> None:
    found = {tensor.name: tensor for tensor in named_tensors("here", quantized({}).state_dict())}
    joined = found["attention.in_proj_weight"]
    assert (joined.path, joined.parameter, joined.bias_name) == (
        "attention",
        "in_proj_weight",
        "attention.in_proj_bias",
    )
    assert isinstance(joined.value, QuantizedWeight)
    assert joined.bias is not None
    assert joined.bias.shape == joined.value.shape[:1]


def test_a_prepared_layer_is_folded() -> None:
    prepared, _ = _prepared(qat=True)
    found = {tensor.name: tensor for tensor in named_tensors("here", prepared.state_dict())}
    assert not any(".bn." in name for name in found)
    assert not torch.equal(found["features.0.weight"].value, prepared.features[0].weight)
