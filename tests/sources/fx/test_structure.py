"""Graphs in graphs and in other models, names, shared modules, what a graph holds beside layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization.fx.custom_config import ConvertCustomConfig, PrepareCustomConfig
from torch.nn import functional as F

from qdeq import QdeqValueError, dequantize_model, register
from qdeq.sources.eager import mappings
from tests.helpers.graphs import converted, floats, hand_built, reloaded, same_bits
from tools.models import engine, tq

torch.manual_seed(21)
X = torch.randn(2, 3, 6, 6)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.weight = nn.Parameter(torch.randn(6, 6) * 0.3)

    def forward(self, x):
        return F.linear(F.relu(self.conv(x)), self.weight)


class Outer(nn.Module):
    def __init__(self, block=Block):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.block = block()
        self.scale = nn.Parameter(torch.rand(6))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.block(self.conv(x)) + x * self.scale)


KEYS = {"scale", "conv.weight", "conv.bias", "block.conv.weight", "block.conv.bias", "head.weight", "head.bias"}


def _standalone(quantized):
    indexes = [0] if quantized else []
    inner = PrepareCustomConfig().set_input_quantized_indexes(indexes).set_output_quantized_indexes(indexes)
    return PrepareCustomConfig().set_standalone_module_name("block", None, (X,), inner, None)


INSIDE = {
    "traced through": (PrepareCustomConfig(), "block.weight"),
    "standalone": (_standalone(False), "block.linear.weight"),
    "standalone, quantized at its borders": (_standalone(True), "block.linear.weight"),
    "not traced": (PrepareCustomConfig().set_non_traceable_module_names(["block"]), "block.weight"),
}


@pytest.mark.parametrize("how", INSIDE)
def test_what_runs_inside_a_graph(how):
    prepare, functional = INSIDE[how]
    model = Outer().eval()
    int8 = converted(model, X, prepare=prepare)
    rebuilt = dequantize_model(int8)
    assert set(rebuilt.state_dict()) == KEYS | {functional}
    assert same_bits(rebuilt.scale, model.scale)
    torch.testing.assert_close(rebuilt(X), model(X), rtol=0.1, atol=0.1)
    imitation, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    assert torch.equal(imitation(X), int8(X))


class _WithGraph(nn.Module):
    def __init__(self, graph):
        super().__init__()
        self.stem = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 3, 1), tq.DeQuantStub())
        self.graph = graph
        self.tail = nn.Linear(4, 2)

    def forward(self, x):
        return self.tail(self.graph(self.stem(x)))


def test_a_graph_inside_an_eager_model():
    graph = converted(Outer().eval(), X)
    model = _WithGraph(nn.Identity()).eval()
    model.stem.qconfig = tq.get_default_qconfig("fbgemm")
    with engine("fbgemm"):
        tq.prepare(model, inplace=True)
        model.stem(X)
        tq.convert(model, inplace=True)
    model.graph = graph
    imitation, report = dequantize_model(model, activations="fake_quant", return_report=True)
    assert not report.uncovered
    assert type(imitation) is _WithGraph
    assert torch.equal(imitation(X), model(X))
    names = {f"graph.{name}" for name in KEYS | {"block.weight"}} | {"stem.1.weight", "stem.1.bias"}
    assert set(dequantize_model(model).state_dict()) == names | {"tail.weight", "tail.bias"}


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


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, x):
        x = self.pool(self.conv(x))
        return torch.cat([self.pool(self.conv(x)), x], 1)


def test_a_module_called_twice_stays_one_and_may_round_to_two_grids():
    int8 = converted(Shared().eval(), X)
    rebuilt = dequantize_model(int8)
    assert set(rebuilt.state_dict()) == {"conv.weight", "conv.bias"}
    assert sum(node.target == "conv" for node in rebuilt.graph.nodes) == 2
    _, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered


def test_inputs_and_outputs_that_are_quantized():
    prepare = PrepareCustomConfig().set_input_quantized_indexes([0]).set_output_quantized_indexes([0])
    int8 = converted(Outer().eval(), X, prepare=prepare)
    x = torch.quantize_per_tensor(X * 0.5, 0.05, 30, torch.quint8)
    rebuilt, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert report.notes[""] == [
        "the int8 graph takes its input x quantized; floats now",
        "the int8 graph returns quantized values; floats now",
    ]
    assert not rebuilt(x.dequantize()).is_quantized
    assert not report.uncovered


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 6, num_layers=2)
        self.attention = nn.MultiheadAttention(6, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        hidden = torch.zeros(2, 2, 6)
        y, _ = self.lstm(x, (hidden, hidden))
        y, _ = self.attention(y, y, y)
        return self.head(y)


def test_a_quantized_lstm_and_a_float_attention():
    prepare = PrepareCustomConfig().set_float_to_observed_mapping(nn.LSTM, nnqa.LSTM)
    convert = ConvertCustomConfig().set_observed_to_quantized_mapping(nnqa.LSTM, nnq.LSTM)
    model, x = Recurrent().eval(), torch.randn(5, 2, 6)
    int8 = converted(model, x, prepare=prepare, convert=convert)
    assert type(int8.lstm) is nnq.LSTM
    rebuilt, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert [item.operation for item in report.uncovered] == ["LSTM"]
    rebuilt = dequantize_model(int8)
    assert model.state_dict().keys() <= rebuilt.state_dict().keys()
    assert same_bits(rebuilt.attention.in_proj_weight, model.attention.in_proj_weight)
    torch.testing.assert_close(rebuilt(x), model(x), rtol=0.1, atol=0.05)


class Numbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        b, c, h, w = x.shape
        torch._assert(c == 4, "four channels")
        x = torch.transpose(x.reshape(b, 2, c // 2, h, w), 1, 2).reshape(b, -1, h, w)
        return x * 0.5 + 1


def test_numbers_from_shapes_and_assertions_stay():
    x = torch.randn(2, 4, 6, 6)
    int8 = converted(Numbers().eval(), x)
    imitation = dequantize_model(int8, activations="fake_quant")
    assert torch.equal(imitation(x), int8(x))
    assert any(node.target is torch._assert for node in dequantize_model(int8).graph.nodes)


def test_what_users_put_on_a_graph_is_kept():
    int8 = converted(Outer().eval(), X)
    int8.classes = ["cat", "dog"]
    int8.extra = nn.Linear(2, 2)
    calls = []
    int8.register_forward_hook(lambda module, args, output: calls.append(type(module).__name__))
    rebuilt, report = dequantize_model(int8, return_report=True)
    assert rebuilt.classes == ["cat", "dog"]
    assert rebuilt.classes is not int8.classes
    assert same_bits(rebuilt.extra.weight, int8.extra.weight)
    assert rebuilt.extra.weight is not int8.extra.weight
    rebuilt(X)
    assert len(calls) == 1
    assert report.notes[""] == ["1 forward hooks kept"]


def test_every_tensor_of_the_graph_is_accounted_for():
    int8 = converted(Functional().eval(), torch.randn(5, 4))
    int8.register_buffer("unused", torch.ones(3))
    _, report = dequantize_model(int8, return_report=True)
    dropped = {item.source: item for item in report.dropped}
    buffers = {name for name, _ in int8.named_buffers()}
    assert buffers == set(dropped)
    assert dropped["unused"].reason == "the graph does not use it"
    scale = next(name for name in buffers if "_scale_" in name)
    assert dropped[scale].value == pytest.approx(float(getattr(int8, scale)))
    assert report.activation_qparams["linear_3"][0] > 0


class _Mine(nnq.Linear):
    pass


def test_a_registered_builder_serves_graphs_too(monkeypatch):
    monkeypatch.setattr(mappings, "_REGISTERED", {})
    int8 = converted(Outer().eval(), X)
    int8.head.__class__ = _Mine
    with pytest.raises(QdeqValueError, match="head is .*_Mine"):
        dequantize_model(int8)
    _, report = dequantize_model(int8, strict=False, return_report=True)
    assert [item.path for item in report.unconverted] == ["head"]

    def build(module, path, report):
        made = nn.Linear(module.in_features, module.out_features)
        with torch.no_grad():
            made.weight.copy_(module.weight().dequantize())
            made.bias.copy_(module.bias())
        return made

    register(_Mine, build)
    assert torch.equal(dequantize_model(int8).head.weight, int8.head.weight().dequantize())


def test_a_dead_quantized_node_goes():
    def call(graph, x):
        graph.call_function(torch.ops.quantized.mul, (x, x, 0.1, 3))
        return x

    assert [node.op for node in dequantize_model(hand_built(call)).graph.nodes] == ["placeholder", "output"]


def test_options_of_other_forms_are_said_to_do_nothing():
    _, report = dequantize_model(converted(Outer().eval(), X), unfold_bn=True, weights="rounded", return_report=True)
    assert [text.partition(" ")[0] for text in report.notes[""]] == ["unfold_bn:", "weights"]


def test_a_graph_of_an_eager_int8_model():
    model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 3, 1), nn.ReLU(), tq.DeQuantStub()).eval()
    model.qconfig = tq.get_default_qconfig("fbgemm")
    with engine("fbgemm"):
        tq.prepare(model, inplace=True)
        model(X)
        tq.convert(model, inplace=True)
    int8 = torch.fx.symbolic_trace(model)
    imitation = dequantize_model(int8, activations="fake_quant")
    assert torch.equal(imitation(X), floats(model(X)))
    assert set(dequantize_model(int8).state_dict()) == {"1.weight", "1.bias"}
