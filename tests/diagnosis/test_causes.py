"""Why an int8 model of right weights is bad: each cause, put into a trained network, is named first, at its module."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import qdeq
from qdeq.diagnosis.findings.outcome import why_parted
from qdeq.diagnosis.results import Outcome
from tools.causes import costs_most, named_first
from tools.faults.outcome import OUTCOME_FAULTS, PER_TENSOR, calibrated, outcome_mutant
from tools.models import engine, tq
from tools.networks import NETWORKS


@pytest.mark.parametrize("kind", OUTCOME_FAULTS)
def test_a_cause_is_named_first(kind):
    assert named_first(kind, "vgg", 100) == kind


@pytest.mark.parametrize("seed", [60, 62, 64])
def test_the_damaged_module_costs_most(seed):
    assert costs_most("vgg", seed) == "damaged"


def vgg(qconfig=None):
    network = NETWORKS["vgg"]
    model, (inputs, labels) = network.trained(), network.samples(96, 5)
    with engine("fbgemm"):
        options = () if qconfig is None else (qconfig,)
        return tq.convert(calibrated(network, model, inputs, *options)), model, (inputs, labels)


@pytest.mark.parametrize("qconfig", [None, PER_TENSOR])
def test_a_good_model_is_not_accused(qconfig):
    int8, model, data = vgg(qconfig)
    explanation = qdeq.explain(int8, model, data)
    assert explanation.agrees, explanation.verdict
    assert explanation.outcome.accuracy_a > 0.9


def test_without_calibration_the_scales_alone_say_so():
    mutant = outcome_mutant("never_calibrated", "vgg", 4)
    explanation = qdeq.explain(mutant.int8, mutant.float_model)
    assert {item.kind for item in explanation.findings if item.is_fault} == {"never_calibrated"}
    assert "features.0" in [item.module for item in explanation.findings if item.is_fault]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: F.log_softmax(x, 1), "the float model applies log_softmax"),
        (lambda x: 3 * x, "3 times the int8 model's"),
        (lambda x: x[:, :2], "the int8 model's is (96, 4), the float model's (96, 2)"),
    ],
)
def test_what_is_behind_the_last_layer_is_said(change, words):
    int8, model, (inputs, _) = vgg()
    model.register_forward_hook(lambda m, args, output: change(output))
    loader = torch.utils.data.DataLoader(inputs, len(inputs))
    explanation = qdeq.explain(int8, model, loader)
    first = explanation.findings[0]
    assert (first.kind, first.module) == ("differs_after", "classifier.3")
    if "(96" not in words:
        assert words in first.message
    else:
        assert first.evidence["shapes"] == [[64, 4], [64, 2]]
        assert explanation.outcome is None
    assert not explanation.agrees


def test_a_forward_that_divides_by_255_is_told_with_its_factor():
    int8, model, data = vgg()
    model.register_forward_pre_hook(lambda m, args: (args[0] / 255,))
    first = qdeq.explain(int8, model, data).findings[0]
    assert (first.kind, first.module) == ("differs_before", "features.0")
    assert first.evidence["factor"] == pytest.approx(1 / 255, rel=0.05)


def test_outputs_that_part_without_a_cause_are_a_finding():
    """Two bits everywhere, as the qconfig says: no layer is accused, and the sensitivity is what is recommended."""
    network = NETWORKS["vgg"]
    observer = tq.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-2, quant_max=1
    )
    inputs, labels = network.samples(96, 5)
    with engine("fbgemm"):
        qconfig = tq.QConfig(activation=tq.default_observer, weight=observer)
        int8 = tq.convert(calibrated(network, network.trained(), inputs, qconfig))
    explanation = qdeq.explain(int8, network.trained(), (inputs, labels))
    faults = {item.kind for item in explanation.findings if item.is_fault}
    assert not explanation.agrees
    assert "outputs_part" in faults or any(kind.startswith("weight") for kind in faults)
    assert not faults & set(OUTCOME_FAULTS)
    assert qdeq.explain(int8, qdeq.dequantize_model(int8), inputs).agrees


@pytest.mark.parametrize(
    ("outcome", "parts"),
    [
        (Outcome(1000, 30.0, 0.1, 1, 1.0, 0.97), False),
        (Outcome(1000, 9.9, 0.1, 1, 1.0), True),
        (Outcome(1000, 30.0, 0.1, 1, 1.0, 0.87), True),
        (Outcome(8, 30.0, 0.1, 1, 1.0, 0.75), False),  # two of eight samples prove nothing
        (Outcome(1000, 30.0, 0.1, 1, 1.0, 0.95, 0.90, 0.94), True),
        (Outcome(1000, 30.0, 0.1, 1, 1.0, 0.95, 0.93, 0.94), False),
        (Outcome(10, None, 0.0, 0, 1.0, 1.0), False),
        (Outcome(10, None, 0.5, 1, 0.0), True),
        (Outcome(10, None, float("nan"), 0, 0.0), True),
    ],
)
def test_when_outputs_part(outcome, parts):
    assert bool(why_parted(outcome)) is parts


def test_remedies_do_not_recommend_what_is_in_use():
    kinds = [outcome_mutant(kind, "vgg", 7) for kind in ("calibrated_wide", "calibrated_narrow", "input_range")]
    for mutant in kinds:
        for item in qdeq.explain(mutant.int8, mutant.float_model, mutant.data).findings:
            assert "reduce_range" not in item.remedy
            assert "per_channel" not in item.remedy
    collapsed = outcome_mutant("levels_collapsed", "vgg", 7)
    first = qdeq.explain(collapsed.int8, collapsed.float_model, collapsed.data).findings[0]
    assert "per_channel" in first.remedy
    assert first.evidence["levels_of_channels"][0] < 16 < first.evidence["levels_of_channels"][-1]


def test_the_int8_model_in_training_mode_is_named():
    int8, model, data = vgg()
    int8.train()
    before = copy.deepcopy(model.state_dict())
    explanation = qdeq.explain(int8, model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # nnq.Dropout does nothing in either mode: then nothing is wrong.
    assert explanation.agrees
