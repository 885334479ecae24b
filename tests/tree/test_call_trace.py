from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qdeq.sources.eager.slots import find_slots
from qdeq.tree.call_trace import UnrecordedError, record_calls, recording


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place, self.other = nn.Conv2d(1, 1, 1), nn.Identity(), nn.Identity()
        self.inner = nn.Sequential(nn.Identity())
        self.register_buffer("gate", torch.ones(1))


def owner_with(forward):
    return type("Written", (Owner,), {"forward": forward})()


@dataclass
class Result:
    raw: object


def trace(forward):
    with recording():
        return record_calls(owner_with(forward))


def slots(forward):
    return find_slots(dict(owner_with(forward).named_modules(remove_duplicate=False)), {"conv": 2})


PROVEN = {
    "plain": lambda self, x: self.place(self.conv(x)),
    "functions and operators after it": lambda self, x: F.relu(self.place(self.conv(x)) + x[0].sum() * 2),
    "nested": lambda self, x: {"out": [torch.cat([self.inner[0](self.conv(x)), x], dim=1).view(x.size(0), -1)]},
}
NOT_PROVEN = {
    "returned as well": lambda self, x: (lambda y: (self.place(y), y))(self.conv(x)),
    "used twice": lambda self, x: (lambda y: self.place(y) + y)(self.conv(x)),
    "run twice": lambda self, x: self.place(self.conv(x)) + self.place(x),
    "layer run twice": lambda self, x: self.place(self.conv(self.conv(x))),
    "used by a function": lambda self, x: self.place(F.relu(self.conv(x))),
    "an attribute of it": lambda self, x: (lambda y: self.place(y).view(y.shape))(self.conv(x)),
    "among other arguments": lambda self, x: (lambda y: torch.stack([self.place(y), y]))(self.conv(x)),
    "in a slice": lambda self, x: (lambda y: self.place(y)[y : y + 1])(self.conv(x)),
}


@pytest.mark.parametrize("case", PROVEN)
def test_proven(case):
    found, reasons = slots(PROVEN[case])
    assert set(found) == {"conv"}, reasons


@pytest.mark.parametrize("case", NOT_PROVEN)
def test_not_proven(case):
    found, reasons = slots(NOT_PROVEN[case])
    assert not found
    assert reasons["conv"]


REFUSED = {
    "a condition": lambda self, x: self.place(x) if x else x,
    "a length": lambda self, x: self.place(x[len(x) :]),
    "a loop": lambda self, x: [self.place(y) for y in x],
    "a buffer": lambda self, x: self.place(x) if self.gate > 0 else x,
    "a parameter of a child": lambda self, x: self.place(x) if self.conv.weight.sum() > 0 else x,
    "an object that hides it": lambda self, x: Result(self.conv(x)),
    "a module that is no child": lambda self, x: nn.ReLU()(x),
    "a number": lambda self, x: self.place(x * int(x)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_followed_is_refused(case):
    with pytest.raises(UnrecordedError):
        trace(REFUSED[case])


def test_a_refusal_that_the_forward_catches_is_still_one():
    def forward(self, x):
        try:
            return self.place(x) if x.sum() > 0 else x
        except Exception:  # noqa: BLE001 (that is the point)
            return self.place(self.conv(x))

    with pytest.raises(UnrecordedError, match="caught"):
        trace(forward)


def test_a_forward_of_the_instance_proves_nothing():
    owner = owner_with(PROVEN["plain"])
    owner.forward = lambda x: owner.conv(x)
    found, reasons = find_slots(dict(owner.named_modules()), {"conv": 2})
    assert not found
    assert "forward of its own" in reasons["conv"]


def test_other_threads_run_their_models_and_everything_is_restored():
    call, attribute = nn.Module.__call__, nn.Module.__getattr__
    layer, got = nn.Linear(2, 2), []

    def forward(self, x):
        thread = threading.Thread(target=lambda: got.append(layer(torch.ones(1, 2))))
        thread.start()
        thread.join()
        return self.place(x)

    assert [node.target for node in trace(forward).nodes if node.op == "call_module"] == ["place"]
    assert torch.equal(got[0], layer(torch.ones(1, 2)))
    with pytest.raises(ValueError, match="broken"):
        trace(lambda self, x: (_ for _ in ()).throw(ValueError("broken")))
    assert nn.Module.__call__ is call
    assert nn.Module.__getattr__ is attribute
