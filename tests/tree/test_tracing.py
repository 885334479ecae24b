from __future__ import annotations

import torch
from torch import nn

from qdeq.tree.tracing import Traces


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
    owner, traces, state = Counting(), Traces(), torch.get_rng_state()
    graph = traces.of(owner)
    assert traces.of(owner) is graph
    assert Counting.runs == 1
    assert owner.seen == []
    assert torch.equal(torch.get_rng_state(), state)
    assert isinstance(graph, str), "a module in a plain attribute has no name that a graph could call"
    owner.kept["other"] = torch.relu
    assert calls(Traces().of(owner)) == ["layer"]


def test_children_are_single_calls():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert calls(Traces().of(nn.Sequential(inner, nn.Identity()))) == ["0", "1"]


def test_why_a_forward_cannot_be_traced_is_said():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert Traces().of(Branches()) == "its owner's forward cannot be traced (TraceError)"
