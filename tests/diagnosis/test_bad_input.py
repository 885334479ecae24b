"""Bad input is a finding or a QdeqError, never a traceback from inside torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qdeq


def test_models_without_a_layer_in_common(small):
    with pytest.raises(qdeq.QdeqValueError, match=r"float_model: expected layers like features\.0"):
        qdeq.explain(small.int8, nn.Sequential(nn.Linear(3, 3)))


def test_modules_without_a_partner_are_named(small):
    model = copy.deepcopy(small.rebuilt)
    model.classifier[3] = nn.Identity()
    explanation = qdeq.explain(small.int8, model)
    assert explanation.unmatched == ["classifier.3"]
    assert ("no_partner", "classifier.3") in [(item.kind, item.module) for item in explanation.findings]


def test_weights_of_another_shape_are_named(small):
    model = copy.deepcopy(small.rebuilt)
    model.classifier[3] = nn.Linear(32, 7)
    assert qdeq.explain(small.int8, model).findings[0].kind == "shape_mismatch"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_found(small, images, value):
    model = copy.deepcopy(small.rebuilt)
    with torch.no_grad():
        model.features[4].weight[0, 0, 0, 0] = value
    for data in (None, images):
        explanation = qdeq.explain(small.int8, model, data)
        assert (explanation.findings[0].kind, explanation.findings[0].module) == ("not_finite", "features.4")
        explanation.to_json()


def test_data_of_the_wrong_shape(small):
    with pytest.raises(qdeq.QdeqValueError, match=r"int8_model, module features\.0: expected a forward"):
        qdeq.explain(small.int8, small.rebuilt, torch.zeros(2, 1, 16, 16))


def state_of(*models):
    """Everything that a failed diagnosis could have changed."""
    values = [value.clone() for model in models for value in [*model.parameters(), *model.buffers()]]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules()]
    modes = [module.training for model in models for module in model.modules()]
    return values, hooks, modes


class Fails(nn.MaxPool2d):
    """Runs a few times, then fails, and changes a buffer whenever it runs."""

    def __init__(self, after: int) -> None:
        super().__init__(2)
        self.after = after
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        if self.runs > self.after:
            raise ValueError("no")
        return super().forward(x)


@pytest.mark.parametrize("side", ["int8", "float"])
@pytest.mark.parametrize("after", [0, 1])
def test_both_models_are_unchanged_by_a_run_that_fails(small, images, side, after):
    int8, model = copy.deepcopy(small.int8), copy.deepcopy(small.rebuilt)
    (int8 if side == "int8" else model).features[3] = Fails(after)
    before = state_of(int8, model)
    for call in (qdeq.explain, qdeq.compare):
        with pytest.raises(qdeq.QdeqValueError, match=r"module features\.3: expected .* ValueError: no"):
            call(int8, model, images)
        for old, new in zip(before, state_of(int8, model), strict=True):
            assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(old, new, strict=True))


def test_a_loader_that_fails_is_not_hidden(small, images):
    def loader():
        yield images[:4]
        raise OSError("disk")

    before = state_of(small.int8, small.rebuilt)
    with pytest.raises(OSError, match="disk"):
        qdeq.explain(small.int8, small.rebuilt, loader())
    assert state_of(small.int8, small.rebuilt)[1:] == before[1:]


@pytest.mark.parametrize("data", [torch.zeros(0, 3, 16, 16), [], iter(())])
def test_no_data(small, data):
    with pytest.raises(qdeq.QdeqValueError, match="data: expected at least one sample, got none"):
        qdeq.explain(small.int8, small.rebuilt, data)


@pytest.mark.parametrize("data", [3, "images.pt", {"x": "y"}, [{"x": 1}], [3]])
def test_data_of_no_known_kind(small, data):
    with pytest.raises(qdeq.QdeqTypeError, match="data: expected"):
        qdeq.explain(small.int8, small.rebuilt, data)


def test_a_module_that_fails_in_forward(small, images):
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no")

    model = copy.deepcopy(small.rebuilt)
    model.features[3] = Broken()
    with pytest.raises(qdeq.QdeqValueError, match=r"float_model, module features\.3: expected .* ValueError: no"):
        qdeq.explain(small.int8, model, images)
    assert qdeq.explain(small.int8, model).findings


@pytest.mark.parametrize("side", [None, 3, torch.zeros(2)])
def test_sides_of_no_known_kind(small, side):
    with pytest.raises(qdeq.QdeqTypeError, match="expected a model, a state_dict or a path"):
        qdeq.explain(small.int8, side)
    with pytest.raises(qdeq.QdeqTypeError):
        qdeq.compare(small.int8, side, torch.zeros(1))


def test_sides_in_the_wrong_order(small):
    with pytest.raises(qdeq.QdeqValueError, match="int8_model: expected a model with quantized weights"):
        qdeq.explain(small.rebuilt, small.int8)


def test_files_that_cannot_be_read(small, tmp_path):
    with pytest.raises(qdeq.QdeqValueError, match="expected an existing file"):
        qdeq.explain(small.int8, tmp_path / "missing.pt")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    for trust in (False, True):
        with pytest.raises(qdeq.QdeqValueError, match=r"broken\.pt"):
            qdeq.explain(small.int8, tmp_path / "broken.pt", trust=trust)


def test_a_pickled_model_is_read_without_running_it_and_run_with_trust(small, images, tmp_path):
    torch.save(small.rebuilt, tmp_path / "model.pt")
    assert qdeq.explain(small.int8, tmp_path / "model.pt").agrees
    assert qdeq.explain(small.int8, tmp_path / "model.pt", images[:8], trust=True).outcome.samples == 8


def test_a_state_dict_cannot_run(small, images):
    with pytest.raises(qdeq.QdeqValueError, match="int8_model: expected a model that can run"):
        qdeq.explain(small.int8.state_dict(), small.rebuilt, images)
