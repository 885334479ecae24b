from __future__ import annotations

import math

import torch
from torch import nn

from qdeq.tree.tracing import Traces, trace


class Counting(nn.Module):
    """Its forward changes it, and draws random numbers."""

    runs = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen, self.kept = nn.Linear(2, 2), [], {"other": nn.ReLU()}
        self.history = (torch.ones(1, requires_grad=True) * 2,)

    def forward(self, x):
        type(self).runs += 1
        self.seen.append(1)
        torch.rand(1)
        return self.kept["other"](self.layer(x))


def calls(graph):
    return [node.target for node in graph.nodes if node.op == "call_module"]


def test_a_forward_is_traced_once_and_nothing_changes():
    owner, state = Counting(), torch.get_rng_state()
    traces = Traces(owner)
    graph = traces.of(owner)
    assert traces.of(owner) is graph
    runs = Counting.runs
    assert traces.of(owner) is graph
    assert Counting.runs == runs
    assert owner.seen == []
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(graph, str), "a module in a plain attribute has no name that a graph could call"
    owner.kept["other"] = torch.relu
    assert calls(Traces(owner).of(owner)) == ["layer"]


def test_a_sequential_is_what_its_trace_is():
    owner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Identity()))
    wanted = trace(owner, lambda module, name: True)
    assert str(Traces(owner).of(owner)) == str(wanted)


def test_functions_of_math_are_followed():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return self[0](x) / math.sqrt(x.size(1))

    assert calls(Traces(nn.Identity()).of(Scaled(nn.Identity()))) == ["0"]


def test_children_are_single_calls():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert calls(Traces(inner).of(nn.Sequential(inner, nn.Identity()))) == ["0", "1"]


def test_why_a_forward_cannot_be_traced_is_said():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert Traces(nn.Identity()).of(Branches()) == "its owner's forward cannot be traced (TraceError)"


def test_a_whole_model_is_followed_into_modules_that_are_not_torchs():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.count = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), 0

        def forward(self, x):
            self.count += 1
            return self.layer(x) + x

    model = nn.Sequential(Block(), nn.Identity())
    assert calls(Traces(model).whole) == ["0.layer.0", "0.layer.1", "1"]
    assert model[0].count == 0


def test_what_a_forward_or_a_hook_would_change_is_left_alone():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("count", torch.zeros(()))
            self.factor = nn.Parameter(torch.ones(()))

        def forward(self, x):
            self.count += 1
            self.factor.data += 1
            return self.layer(x) * self.factor

    model, seen = nn.Sequential(Counts()), []
    model[0].register_forward_hook(lambda *_: seen.append(1))
    traces = Traces(model)
    assert calls(traces.whole) == ["0.layer"]
    assert calls(traces.of(model[0])) == ["layer"]
    assert (float(model[0].count), float(model[0].factor.detach()), seen) == (0, 1, [])
    assert len(model[0]._forward_hooks) == 1
