"""Each fault, put in at a random place, is named first, at its module."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qdeq
from qdeq.diagnosis.kinds import KINDS
from tools.faults import MUTATIONS, mutate, mutate_twice
from tools.faults.small import small_float, small_subject

TRIALS = 4


@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_fault_is_named_first(kind, small):
    for seed in range(TRIALS):
        mutant = mutate(kind, small, 100 + seed)
        explanation = qdeq.explain(mutant.int8, mutant.float_model, mutant.data)
        # A layer that clips makes its successor saturate: that is a finding of its own.
        first = next(item for item in explanation.findings if kind == "saturation" or item.kind != "saturation")
        assert (first.kind, first.module in mutant.modules) == (kind, True), (seed, mutant.modules, first)
        assert first.is_fault is (kind != "clipping")
        assert explanation.agrees is not any(item.is_fault for item in explanation.findings)
        assert 0 <= first.share <= 1


@pytest.mark.parametrize(
    "kinds",
    [("weight_not_copied", "bias_zeroed"), ("scale_missing", "activation_lost"), ("weights_swapped", "scale_divided")],
)
def test_both_of_two_faults_are_named(kinds, small):
    for seed in range(3):
        first, second = mutate_twice(kinds, small, seed)
        found = {(item.kind, item.module) for item in qdeq.explain(second.int8, second.float_model).findings}
        for mutant in (first, second):
            assert any((mutant.kind, path) in found for path in mutant.modules), (seed, mutant.kind, found)


@pytest.mark.parametrize("seed", range(3))
def test_a_correct_rebuild_agrees(seed):
    subject = small_subject(seed, batch_norm=bool(seed % 2))
    explanation = qdeq.explain(subject.int8, subject.rebuilt)
    assert explanation.agrees
    assert {item.kind for item in explanation.findings} == {"rounding"}
    assert "bit for bit" in explanation.verdict


def test_the_float_original_agrees_with_its_batch_norm_unfolded(small):
    explanation = qdeq.explain(small.int8, small_float(0))
    assert explanation.agrees, explanation.verdict
    assert all(0 < item.evidence["max_steps"] <= 0.5001 for item in explanation.findings)


def test_a_doubled_relu_is_no_fault(small):
    model = copy.deepcopy(small.rebuilt)
    path = next(path for path, module in model.named_modules() if isinstance(module, nn.ReLU))
    model.set_submodule(path, nn.Sequential(nn.ReLU(), nn.ReLU()))
    assert qdeq.explain(small.int8, model).agrees


def test_a_fresh_batch_norm_in_eval_mode_is_no_fault(small):
    model = copy.deepcopy(small.rebuilt)
    model.features[1] = nn.BatchNorm2d(16).eval()
    assert qdeq.explain(small.int8, model).agrees


def test_weights_of_the_training_seed_are_told_from_copied_ones():
    """A fresh model made with the seed of the training is correlated with the trained one, and still never copied."""
    torch.manual_seed(0)
    trained = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(64, 64), torch.ao.quantization.DeQuantStub())
    start = copy.deepcopy(trained)
    with torch.no_grad():
        trained[1].weight += 0.03 * torch.randn(64, 64)
    trained.eval().qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(trained)
    prepared(torch.randn(8, 64))
    first = qdeq.explain(torch.ao.quantization.convert(prepared), start.eval()).findings[0]
    assert first.kind == "weight_not_copied"
    assert first.evidence["correlation"] > 0.5


def test_scales_are_reported_as_the_formula_that_was_used(small):
    mutant = mutate("scale_of_one_channel", small, 3)
    first = qdeq.explain(mutant.int8, mutant.float_model).findings[0]
    scales = mutant.int8.get_submodule(first.module).weight().q_per_channel_scales()
    channel = int(first.message.partition("scales[")[2].partition("]")[0])
    assert first.evidence["factor"][0] == pytest.approx(float(scales[channel]), rel=1e-5)


# Not a fault, a fault of the int8 model, and three whose remedy makes another model.
NO_LINE_IN_PLACE = {"clipping", "saturation", "zero_point_wrapped", "training_mode", "no_partner"}


@pytest.mark.parametrize("kind", sorted(set(MUTATIONS) - NO_LINE_IN_PLACE))
def test_the_remedy_is_code_that_works(kind, small):
    mutant = mutate(kind, small, 7)
    names = {"qdeq": qdeq, "torch": torch, "int8_model": mutant.int8, "float_model": mutant.float_model}
    for _ in range(8):
        faults = [item for item in qdeq.explain(mutant.int8, names["float_model"]).findings if item.is_fault]
        if not faults or kind == "activation_lost":
            break
        exec(faults[0].remedy, names)
    if kind == "activation_lost":  # a hook is no module: tracing does not see it, running does
        exec(faults[0].remedy, names)
        x = torch.randn(4, 3, 16, 16)
        assert torch.allclose(names["float_model"](x), small.rebuilt(x))
    else:
        assert not faults, faults[0]


@pytest.mark.parametrize("stub", ["quant", "dequant"])
def test_a_stub_that_is_an_identity_in_any_form_is_no_fault(stub, small):
    class Same(nn.Module):
        def forward(self, x):
            return x.clone()

    scale, zero_point = float(small.int8.quant.scale), int(small.int8.quant.zero_point)
    fake = torch.ao.quantization.FakeQuantize(observer=torch.ao.quantization.MovingAverageMinMaxObserver)
    fake.scale, fake.zero_point = torch.tensor([scale]), torch.tensor([zero_point])
    fake.disable_observer()
    for module in (Same(), torch.ao.quantization.QuantStub(), fake):
        model = copy.deepcopy(small.rebuilt)
        model.set_submodule(stub, module)
        assert qdeq.explain(small.int8, model).agrees
    model = copy.deepcopy(small.rebuilt)
    delattr(model, stub)  # a forward that does without a stub has lost nothing
    model.forward = lambda x: model.classifier(model.features(x).flatten(1))
    assert qdeq.explain(small.int8, model).agrees


def test_a_stub_that_normalizes_images_is_named(small, images):
    class Normalize(nn.Module):
        def forward(self, x):
            return (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / 0.2

    model = copy.deepcopy(small.rebuilt)
    model.quant = Normalize()
    first = qdeq.explain(small.int8, model, images).findings[0]
    assert (first.kind, first.module) == ("quant_stub_lost", "quant")
    assert first.repair > 0.9


def test_every_kind_has_words():
    for name, kind in KINDS.items():
        assert kind.phrase, name
        assert kind.remedy, name
