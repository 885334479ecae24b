"""Remedies for sides that are no modules: code that works on what the caller has."""

import pytest
import torch

import qdeq
from tools.causes import outcome_mutant
from tools.faults import mutate
from tools.networks.recipes import recipes

STATES = {
    "int8": (True, False),
    "float": (False, True),
    "both": (True, True),
}


@pytest.mark.parametrize("which", STATES)
@pytest.mark.parametrize("kind", ["weight_not_copied", "scale_mean", "bias_wrong", "other_checkpoint"])
def test_a_remedy_for_state_dicts_is_code_that_works(kind, which, small):
    mutant = mutate(kind, small, 7)
    int8_state, float_state = mutant.int8.state_dict(), dict(mutant.float_model.state_dict())
    names = {"qdeq": qdeq, "torch": torch, "int8_state": int8_state, "float_state": float_state}
    names |= {"int8_model": mutant.int8, "float_model": mutant.float_model}
    of_int8, of_float = STATES[which]
    for _ in range(8):
        theirs = names["float_state"] if of_float else names["float_model"]
        answer = qdeq.explain(int8_state if of_int8 else mutant.int8, theirs)
        faults = [item for item in answer.findings if item.is_fault]
        if not faults:
            break
        exec(faults[0].remedy, names)
        if of_int8 and not of_float and "float_state, report" in faults[0].remedy:
            names["float_model"].load_state_dict(names["float_state"])
        if of_float and not of_int8 and "float_model = " in faults[0].remedy:
            names["float_state"] = names["float_model"].state_dict()
    assert not faults, faults[0]


def test_a_state_dict_without_calibration_says_so():
    mutant = outcome_mutant("never_calibrated", "vgg", 4)
    answer = qdeq.explain(mutant.int8.state_dict(), mutant.float_model)
    named = {item.module for item in answer.findings if item.kind == "never_calibrated"}
    assert {"features.0", "classifier.3", "quant"} <= named
    assert named == {item.module for item in answer.findings if item.is_fault}


@pytest.mark.parametrize("name", ["lstm/fbgemm/dynamic", "vgg/fbgemm/ptq default"])
def test_a_state_dict_whose_numbers_are_unused_or_measured_is_not_called_uncalibrated(name):
    network, engine = name.split("/")[:2]
    quantized = dict(recipes([network], (engine,)))[name]()
    state = {
        key: value for key, value in quantized.int8.state_dict().items() if not isinstance(value, torch.ScriptObject)
    }
    kinds = {item.kind for item in qdeq.explain(state, quantized.floats["float"]).findings}
    assert "never_calibrated" not in kinds
