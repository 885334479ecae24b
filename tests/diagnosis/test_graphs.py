"""Explanations of int8 graphs: their layers, those without a module of their own included, and who is innocent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qdeq import dequantize_model, explain
from qdeq.sources.fx.modules import with_modules
from tests.helpers.graphs import converted
from tools.models import tq


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8) * 0.3)
        self.b = nn.Parameter(torch.randn(8) * 0.1)

    def forward(self, x):
        return F.relu(F.linear(x, self.w, self.b))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.inner = Inner()
        self.w = nn.Parameter(torch.randn(6, 8) * 0.3)
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1) + 0.1
        return self.head(F.linear(self.inner(x), self.w))


@pytest.fixture(scope="module")
def sides():
    torch.manual_seed(6)
    model, x = Net().eval(), torch.randn(32, 3, 8, 8)
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    return model, converted(model, x), x


LAYERS = {"conv", "inner", "linear_1", "head"}


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("other", ["float model", "drop", "fake_quant", "state dict"])
def test_innocent_models_agree(sides, other, data):
    model, int8, x = sides
    if other == "float model":
        given = model
    else:
        given = dequantize_model(int8, activations="fake_quant" if other == "fake_quant" else "drop")
    explanation = explain(int8, given.state_dict() if other == "state dict" else given, [x] if data else None)
    assert explanation.verdict.startswith("The models agree"), explanation
    assert {layer.module for layer in explanation.layers} == LAYERS


@pytest.mark.parametrize("path", ["conv", "inner", "linear_1"])
def test_the_guilty_layer_is_named_and_its_remedy_can_be_run(sides, path):
    _, int8, x = sides
    wrong = dequantize_model(int8)
    with torch.no_grad():
        wrong.get_submodule(path).weight.mul_(1.4)
    explanation = explain(int8, wrong, [x])
    worst = explanation.findings[0]
    assert (worst.module, worst.kind) == (path, "scale_wrong")
    names = {"int8_model": int8, "float_model": wrong, "qdeq": __import__("qdeq"), "torch": torch}
    exec(worst.remedy, names)
    assert explain(int8, names["float_model"], [x]).verdict.startswith("The models agree")


def test_a_weight_that_the_float_model_hands_to_a_function_is_compared(sides):
    model, int8, _ = sides
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.inner.w.mul_(1.4)
    kinds = {item.module: item.kind for item in explain(int8, wrong).findings if item.module.startswith("inner")}
    assert kinds
    assert "no_partner" not in kinds.values()
    assert not explain(int8, wrong).verdict.startswith("The models agree")


def test_the_graph_with_modules_computes_the_same_and_shares_its_weights(sides):
    _, int8, x = sides
    runs = with_modules(int8)
    assert torch.equal(runs(x), int8(x))
    assert {"inner", "linear_1"} <= {path for path, _ in runs.named_modules()}
    assert runs.conv is int8.conv
    assert not list(runs.buffers()), "scales are numbers"
    reference = converted(Net().eval(), x, reference=True)
    assert torch.equal(with_modules(reference)(x), reference(x))
    mapping = tq.QConfigMapping().set_global(tq.default_dynamic_qconfig)
    flat = torch.randn(3, 8)
    dynamic = converted(Inner().eval(), flat, mapping=mapping)
    assert torch.equal(with_modules(dynamic)(flat), dynamic(flat))
