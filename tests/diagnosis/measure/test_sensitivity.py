"""The table of what each layer's quantization costs."""

from __future__ import annotations

import json

import pytest
import torch

import qdeq
from tools.faults.outcome import damaged


@pytest.fixture(scope="module")
def mutant():
    return damaged("vgg", 0)


def runs_of(model, call):
    count = []
    handle = model.features[0].register_forward_hook(lambda m, args, output: count.append(len(args[0])))
    result = call()
    handle.remove()
    return result, sum(count)


def test_each_module_has_its_costs_and_its_forwards(mutant):
    inputs = mutant.data[0]
    plain, before = runs_of(mutant.float_model, lambda: qdeq.explain(mutant.int8, mutant.float_model, mutant.data))
    calls = []
    apart, after = runs_of(
        mutant.float_model,
        lambda: qdeq.explain(
            mutant.int8, mutant.float_model, mutant.data, sensitivity=True, progress=lambda *args: calls.append(args)
        ),
    )
    rows = {row.module: row for row in apart.sensitivity}
    assert set(rows) == {"quant", "features.0", "features.4", "features.8", "classifier.0", "classifier.3"}
    assert plain.sensitivity == []
    # Weights and outputs of five layers, and the stub's output; never a row's whole model.
    assert (after - before) / len(inputs) == 11 == len(calls) == calls[-1][1] == calls[-1][2]
    assert rows["quant"].weights is None
    assert all(row.activations.accuracy is not None for row in rows.values())
    assert apart.sensitivity == sorted(apart.sensitivity, key=lambda row: -row.noise)
    together = qdeq.explain(mutant.int8, mutant.float_model, inputs, sensitivity="together").sensitivity
    assert all(row.together is not None and row.weights is None for row in together)
    assert together[0].together.accuracy is None
    assert together[0].module == apart.sensitivity[0].module


def test_it_is_in_text_json_and_html(mutant, tmp_path):
    explanation = qdeq.explain(mutant.int8, mutant.float_model, mutant.data, sensitivity=True)
    text = str(explanation)
    assert "weights dB" in text
    assert max(map(len, text.splitlines())) <= 80
    content = json.loads(explanation.to_json())["sensitivity"]
    assert content[0]["module"] == explanation.sensitivity[0].module
    assert set(content[0]) == {"module", "weights", "activations", "together"}
    page = explanation.to_html(tmp_path / "out.html").read_text()
    assert "<h2>Sensitivity</h2>" in page


def test_a_layer_that_is_exact_costs_nothing(mutant):
    rebuilt = qdeq.dequantize_model(mutant.int8)
    rows = qdeq.explain(mutant.int8, rebuilt, mutant.data[0], sensitivity=True).sensitivity
    assert all(row.weights.noise == 0 and row.weights.sqnr_db is None for row in rows if row.weights)
    assert any(row.activations.noise > 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"sensitivity": True}, "data: expected inputs"), ({"sensitivity": "both"}, "sensitivity: expected True")],
)
def test_what_it_needs(mutant, options, words):
    with pytest.raises(qdeq.QdeqValueError, match=words):
        qdeq.explain(mutant.int8, mutant.float_model, **options)


def test_both_models_are_unchanged(mutant):
    models = (mutant.int8, mutant.float_model)
    before = [value.clone() for value in mutant.float_model.state_dict().values()], list(map(str, models))
    qdeq.explain(*models, mutant.data, sensitivity=True)
    after = list(mutant.float_model.state_dict().values()), list(map(str, models))
    assert all(map(torch.equal, before[0], after[0]))
    assert before[1] == after[1]
    assert not any(module._forward_hooks for model in models for module in model.modules())
