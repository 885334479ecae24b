"""torchvision's quantizable models: every parameter accounted for, the float classes' keys, layer by layer the bits."""

from __future__ import annotations

import pytest
import torch

import qdeq
from tests.helpers.models import assert_same_bits
from tools.agreement import layer_agreement
from tools.models import SIDES, converted_model, example, float_model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", SIDES)
def test_rebuilt(name):
    model = converted_model(name)
    x = example(name)
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert report.uncovered == []
    assert report.unconverted == []
    _check_layers(model, rebuilt, x)
    drop = qdeq.drop_activations(rebuilt)
    assert {entry.target for entry in report.entries} == {name for name, _ in drop.named_parameters()}
    _check_keys(name, model, drop, x)


def _check_layers(model, rebuilt, x):
    agreement = layer_agreement(model, rebuilt, x)
    assert agreement
    for path, layer in agreement.items():
        assert layer.share >= 0.99, (path, layer)
        assert layer.max_steps < 1.01, (path, layer)


def _check_keys(name, model, drop, x):
    """The state_dict fits the plain float class: with the norms folded, and with them put back."""
    plain = float_model(name)
    unfolded = qdeq.dequantize_model(model, unfold_bn=True)
    assert set(unfolded.state_dict()) == set(plain.state_dict())
    for tensor in plain.state_dict().values():
        tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)
    plain.load_state_dict(unfolded.state_dict())
    norms = {path for path, module in plain.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    kept = {key for key in plain.state_dict() if key.rpartition(".")[0] not in norms}
    folded = drop.state_dict()
    # Each folded norm left one bias with the layer before it; all other keys are the class's own.
    assert {key for key in folded if key in kept} == kept
    assert len(set(folded) - kept) == len(norms)
    for key in kept:
        assert_same_bits(folded[key], plain.state_dict()[key])
    with torch.no_grad():
        expected, actual = drop(x), plain(x)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-4
