"""Graphs that cannot be rebuilt: one error that names every reason, with the line of code where torch kept it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from qdeq import QdeqValueError, dequantize_model
from tests.helpers.graphs import converted, hand_built

Q = torch.ops.quantized


def of_mine(x):
    return x


def test_all_operations_without_a_float_meaning_are_named_at_once():
    def call(graph, x):
        x = graph.call_function(of_mine, (x,))
        x = graph.call_function(Q.add_out, (x, x, x))
        graph.call_method("q_scale", (x,))
        return graph.call_function(Q.hardswish, (x, 0.1, 3))

    with pytest.raises(QdeqValueError) as error:
        dequantize_model(hand_built(call))
    text = str(error.value)
    for part in (
        "node of_mine: tests.",
        "node add_out: what quantized::add_out is",
        "node q_scale: a float tensor has",
    ):
        assert part in text


def test_a_custom_operator_is_refused_on_quantized_values_only():
    graph = torch.fx.Graph()
    x = graph.call_function(of_mine, (graph.placeholder("x"),))
    x = graph.call_function(torch.quantize_per_tensor, (x, 0.1, 3, torch.quint8))
    graph.output(graph.call_method("dequantize", (x,)))
    x = torch.randn(3)
    assert torch.equal(dequantize_model(torch.fx.GraphModule({}, graph))(x), x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.conv(x)
        x = x.reshape(2, 3, 6, 6)
        return self.head(x)


def test_the_line_of_code_is_named():
    int8 = converted(Net().eval(), torch.randn(2, 3, 6, 6))
    node = next(node for node in int8.graph.nodes if node.name == "reshape")
    node.target, node.args = "int_repr", node.args[:1]
    with pytest.raises(
        QdeqValueError, match=r"node reshape \(x = x.reshape\(2, 3, 6, 6\), test_refusals.py line \d+\)"
    ):
        dequantize_model(int8)


def test_half_converted_graphs_are_refused():
    int8 = converted(Net().eval(), torch.randn(2, 3, 6, 6))
    int8.add_module("left", tq.MinMaxObserver())
    with pytest.raises(QdeqValueError, match=r"half converted one: left is .*MinMaxObserver"):
        dequantize_model(int8)


def test_a_float_graph_has_nothing_to_undo():
    float_graph = torch.fx.symbolic_trace(Net())
    with pytest.raises(QdeqValueError, match="at least one quantized module, got none"):
        dequantize_model(float_graph)
    assert dequantize_model(float_graph, strict=False) is not float_graph


def test_a_prepared_graph_is_still_one_of_prepared_models():
    x = torch.randn(2, 3, 6, 6)
    prepared = tq.quantize_fx.prepare_fx(copy.deepcopy(Net()).eval(), tq.get_default_qconfig_mapping(), (x,))
    assert set(dequantize_model(prepared).state_dict()) == set(Net().state_dict())
