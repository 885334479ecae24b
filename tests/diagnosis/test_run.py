"""With data: attribution by repair, the table of layers, models untouched, costs."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

import qdeq
from qdeq.diagnosis.measure.data import Batch
from qdeq.diagnosis.measure.running import forward
from tools.faults import mutate
from tools.faults.small import FULL_RANGE, SmallNet, small_float, small_int8


def naive_copy(int8: nn.Module, float_model: nn.Module) -> nn.Module:
    """Copy what has 'weight' in its name, as everybody does first."""
    with torch.no_grad():
        for name, value in int8.state_dict().items():
            if "weight" in name:
                float_model.get_parameter(name).copy_(value.dequantize())
    return float_model


def test_the_copy_by_name_is_explained(images):
    int8 = small_int8(3, batch_norm=False)
    torch.manual_seed(9)
    copied = naive_copy(int8, SmallNet(batch_norm=False).eval())
    labels = int8(images).argmax(1)
    explanation = qdeq.explain(int8, copied, (images, labels))
    assert explanation.verdict.startswith("classifier.0 and classifier.3: weights never copied (")
    share, recovered = (part.strip() for part in explanation.verdict.split("(")[1].split(")")[0].split(","))
    assert share.endswith("of the weights")
    assert recovered.endswith("% of the accuracy lost")
    assert float(recovered.split("%")[0]) >= 60  # the missing biases are large here
    assert explanation.outcome.accuracy_a == 1.0
    assert explanation.cumulative[-1][1] > 0.99


def test_one_fault_takes_the_whole_disagreement(small, images):
    for kind in ("scale_mean", "weight_not_copied", "activation_lost", "bn_applied_twice"):
        mutant = mutate(kind, small, 11)
        first = qdeq.explain(mutant.int8, mutant.float_model, images).findings[0]
        assert first.kind == kind
        assert first.repair > 0.9, (kind, first.repair)


def test_training_mode_is_found_and_repaired(small, images):
    mutant = mutate("training_mode", small, 2)
    first = qdeq.explain(mutant.int8, mutant.float_model, images).findings[0]
    assert first.kind == "training_mode"
    assert first.repair > 0.9


def test_errors_are_split_into_own_and_inherited(small, images):
    model = copy.deepcopy(small.rebuilt)
    with torch.no_grad():
        model.features[4].weight *= 1.5
    explanation = qdeq.explain(small.int8, model, images)
    rows = {row.module: row for row in explanation.layers}
    assert rows["features.4"].introduced > 0.2 > rows["features.4"].inherited
    assert rows["features.8"].inherited > 0.1 > rows["features.8"].introduced
    assert explanation.first_divergence in (None, "features.4", "features.8", "classifier.0", "classifier.3")
    assert qdeq.explain(small.int8, model, images, layers=False).layers == []


def test_a_prepared_model_is_a_float_side_and_keeps_its_buffers(images):
    model = small_float(4).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    model = torch.ao.quantization.fuse_modules_qat(model, [[f"features.{i + k}" for k in range(3)] for i in (0, 4, 8)])
    prepared = torch.ao.quantization.prepare_qat(model)
    for _ in range(3):
        prepared(images[:16])
    prepared.eval()
    int8 = torch.ao.quantization.convert(copy.deepcopy(prepared))
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    explanation = qdeq.explain(int8, prepared, images[:16])
    comparison = qdeq.compare(int8, prepared, images[:16])
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert explanation.agrees, str(explanation)
    assert comparison.outcome.sqnr_db > 15


def test_both_models_are_unchanged(small, images):
    for kind in ("weight_not_copied", "activation_lost", "bn_applied_twice", "training_mode"):
        mutant = mutate(kind, small, 5)
        models = (mutant.int8, mutant.float_model)
        before = [str(model) for model in models]
        values = [value.clone() for value in mutant.float_model.state_dict().values()]
        modes = [module.training for model in models for module in model.modules()]
        output = mutant.int8(images)
        torch.manual_seed(0)
        draw = torch.randn(3)
        torch.manual_seed(0)
        qdeq.explain(*models, images)
        assert torch.equal(torch.randn(3), draw)
        assert [str(model) for model in models] == before
        assert all(torch.equal(a, b) for a, b in zip(mutant.float_model.state_dict().values(), values, strict=True))
        assert [module.training for model in models for module in model.modules()] == modes
        assert not any(module._forward_hooks for model in models for module in model.modules())
        assert torch.equal(mutant.int8(images), output)


def test_clipping_is_named_and_still_agrees(small, images):
    int8 = copy.deepcopy(small.int8)
    int8.classifier[3].scale /= 1.5
    explanation = qdeq.explain(int8, small.rebuilt, images)
    assert explanation.agrees
    assert "classifier.3" in [item.module for item in explanation.findings if item.kind == "clipping"]


@pytest.mark.parametrize("saturates", ["0", "1"])
def test_saturation_is_named_by_arithmetic_on_the_integers(saturates, monkeypatch):
    """Full 8-bit activations and large weights: pairs of products exceed int16 on CPUs without VNNI."""
    monkeypatch.setenv("QDEQ_CPU_SATURATES", saturates)
    torch.manual_seed(0)
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(64, 8), torch.ao.quantization.DeQuantStub())
    with torch.no_grad():
        model[1].weight.copy_(torch.rand(8, 64) + 0.5)
    model.eval().qconfig = FULL_RANGE
    prepared = torch.ao.quantization.prepare(model)
    x = torch.rand(64, 64) + 1
    prepared(x)
    int8 = torch.ao.quantization.convert(prepared)
    explanation = qdeq.explain(int8, qdeq.dequantize_model(int8), x)
    first = explanation.findings[0]
    assert (first.kind, first.module) == ("saturation", "1")
    assert "float model is right" in first.message
    assert first.evidence["wrong_outputs"] > 0.5
    assert first.evidence["cpu_saturates"] is (saturates == "1")
    assert ("on this CPU" in first.message) is (saturates == "1")
    assert not explanation.agrees


def test_a_variable_states_what_the_cpu_does(monkeypatch):
    from qdeq.diagnosis.measure.saturation import cpu_saturates

    monkeypatch.delenv("QDEQ_CPU_SATURATES", raising=False)
    assert isinstance(cpu_saturates(), bool)
    monkeypatch.setenv("QDEQ_CPU_SATURATES", "yes")
    with pytest.raises(qdeq.QdeqValueError, match="QDEQ_CPU_SATURATES: expected 0 or 1, got 'yes'"):
        cpu_saturates()


def test_the_layer_that_overflows_most_comes_first():
    """Whatever its size, its place in the model, and how many outputs of another layer move by half a step."""
    from qdeq.diagnosis.findings.verdict import order
    from qdeq.diagnosis.results import Finding

    def saturated(module, sums, outputs, share):
        return Finding(module, "saturation", "", {"saturated_sums": sums, "wrong_outputs": outputs}, share)

    few, most, some = (
        saturated("a", 0.0002, 0.32, 0.9),
        saturated("b", 0.11, 0.94, 0.001),
        saturated("c", 0.03, 1.0, 0.1),
    )
    for given in itertools.permutations([few, most, some]):
        assert [item.module for item in order(list(given), {})] == ["b", "c", "a"]


def test_reduced_range_does_not_saturate(small, images):
    findings = qdeq.explain(small.int8, small.rebuilt, images).findings
    assert "saturation" not in {item.kind for item in findings}


def test_pair_sums_clamp_each_pair():
    from qdeq.diagnosis.measure.saturation import pair_sums

    rows = torch.tensor([[255, 255, 1, 1]], dtype=torch.uint8)
    weights = torch.tensor([[127, 127, 1, -1]], dtype=torch.int8)
    exact, clamped, share = pair_sums(rows, weights)
    assert (int(exact), int(clamped), share) == (64770, 32767, 0.5)


def test_a_state_dict_and_files_are_sides(small, images, tmp_path):
    mutant = mutate("weight_not_copied", small, 8)
    state = mutant.float_model.state_dict()
    for side in (state, {"state_dict": state}):
        first = qdeq.explain(small.int8, side, images).findings[0]
        assert (first.kind, first.module) == ("weight_not_copied", mutant.modules[0])
        assert first.repair > 0.5
    torch.save(small.int8.state_dict(), tmp_path / "int8.pt")
    torch.save(state, tmp_path / "float.pt")
    first = qdeq.explain(tmp_path / "int8.pt", str(tmp_path / "float.pt")).findings[0]
    assert (first.kind, first.module) == ("weight_not_copied", mutant.modules[0])


def test_data_may_be_a_loader(small, images):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, images[:, 0, 0, 0].abs().long()), 32)
    assert qdeq.explain(small.int8, small.rebuilt, loader).outcome.samples == len(images)
    assert qdeq.compare(small.int8, small.rebuilt, loader).outcome.accuracy_a is not None


def test_it_costs_at_most_four_forwards_of_both(small, images):
    mutant = mutate("other_checkpoint", small, 0)
    counts = {"int8": 0, "float": 0}
    handles = [
        mutant.int8.features[0].register_forward_hook(lambda m, x, y: counts.update(int8=counts["int8"] + len(x[0]))),
        mutant.float_model.features[0].register_forward_hook(
            lambda m, x, y: counts.update(float=counts["float"] + len(x[0]))
        ),
    ]
    data = images.repeat(5, 1, 1, 1)
    qdeq.explain(mutant.int8, mutant.float_model, data)
    for handle in handles:
        handle.remove()
    # The float layers run once more on the int8 model's inputs, which the hook does not see.
    assert counts["int8"] + counts["float"] + len(data) <= 8 * len(data), counts


def test_compare_has_no_findings(small, images):
    comparison = qdeq.compare(small.int8, small.rebuilt, images)
    assert {row.module for row in comparison.layers} >= {"features.0", "classifier.3"}
    assert all(row.sqnr_db > 20 for row in comparison.layers), str(comparison)
    same = qdeq.compare(small.rebuilt, copy.deepcopy(small.rebuilt), images)
    assert same.outcome.max_abs == 0
    assert all(row.sqnr_db is None and row.cosine == 1.0 for row in same.layers)


def test_forward_names_the_module_that_fails():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken on purpose")

    with pytest.raises(qdeq.QdeqValueError, match=r"model, module 1: expected .* RuntimeError: broken on purpose"):
        forward(nn.Sequential(nn.Identity(), Broken()), Batch((torch.zeros(1),)), "model")
