"""What a graph holds: weights that it hands to functions, under which names, and that nothing is lost in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qdeq import dequantize_model
from tests.helpers.graphs import converted, hand_built, reloaded
from tools.models import engine


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner(1)
        self.two = Inner(2)
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(self.two(self.inner(x)), self.w)


class Inner(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(4, 4) * 0.5) for _ in range(times)])

    def forward(self, x):
        for weight in self.weights:
            x = F.linear(x, weight)
        return x


def test_weights_of_functions_are_named_after_the_module_that_ran_them():
    x = torch.randn(5, 4)
    model = Functional().eval()
    int8 = converted(model, x)
    rebuilt, report = dequantize_model(int8, return_report=True)
    names = ["inner.weight", "two.linear_1.weight", "two.linear_2.weight", "linear_3.weight"]
    assert sorted(rebuilt.state_dict()) == sorted(names)
    assert {entry.target for entry in report.entries} == set(names)
    assert set(dequantize_model(copy.deepcopy(int8)).state_dict()) == set(names)
    loaded = dequantize_model(reloaded(int8))  # a file keeps no module paths: the packed weight's name tells
    assert {name.rpartition(".linear")[0] for name in loaded.state_dict() if "two" in name} == {"two"}
    assert "inner.weight" in loaded.state_dict()
    assert torch.equal(loaded(x), rebuilt(x))


def test_every_tensor_of_the_graph_is_accounted_for():
    int8 = converted(Functional().eval(), torch.randn(5, 4))
    int8.register_buffer("unused", torch.ones(3))
    int8.forgotten = int8.inner_packed_weight_0
    _, report = dequantize_model(int8, return_report=True)
    dropped = {item.source: item for item in report.dropped}
    buffers = {name for name, _ in int8.named_buffers()}
    assert buffers | {"forgotten"} == set(dropped)
    assert dropped["unused"].reason == dropped["forgotten"].reason == "the graph does not use it"
    scale = next(name for name in buffers if "_scale_" in name)
    assert dropped[scale].value == pytest.approx(float(getattr(int8, scale)))
    assert report.activation_qparams["linear_3"][0] > 0


def test_what_nothing_uses_goes_and_is_named():
    def call(graph, x):
        graph.call_function(torch.ops.quantized.mul, (x, x, 0.1, 3))
        graph.call_function(torch.ops.quantized.linear, (x, graph.get_attr("packed"), 0.1, 3))
        return x

    with engine("fbgemm"):
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8))
    rebuilt, report = dequantize_model(hand_built(call, packed=packed), return_report=True)
    assert [node.op for node in rebuilt.graph.nodes] == ["placeholder", "output"]
    assert report.notes == {"linear": ["nothing uses what it gives: it is not in the float graph"]}
    assert not report.replaced
