"""Where a fused activation goes back to: only where the trace of its owner proves it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qdeq.sources.eager.slots import Slots


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.place, self.other = nn.Conv2d(1, 1, 1), nn.Identity(), nn.Identity()
        self.inner = nn.Sequential(nn.Identity())
        self.register_buffer("gate", torch.ones(1))


def owner_with(forward):
    return type("Written", (Owner,), {"forward": forward})()


def slot(owner):
    return Slots(dict(owner.named_modules(remove_duplicate=False))).find("conv", 2)


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
NOT_FOLLOWED = {
    "a condition": lambda self, x: self.place(self.conv(x)) if x.sum() > 0 else x,
    "a length": lambda self, x: self.place(self.conv(x)[len(x) :]),
    "a loop": lambda self, x: [self.place(y) for y in self.conv(x)],
    "a number": lambda self, x: self.place(self.conv(x * int(x))),
    "an exception": lambda self, x: (_ for _ in ()).throw(ValueError("broken")),
}


@pytest.mark.parametrize("case", PROVEN)
def test_proven(case):
    owner = owner_with(PROVEN[case])
    assert slot(owner) in (owner.place, owner.inner[0])


@pytest.mark.parametrize("case", NOT_PROVEN)
def test_not_proven(case):
    assert slot(owner_with(NOT_PROVEN[case])) == "no Identity that runs on its output alone"


@pytest.mark.parametrize("case", NOT_FOLLOWED)
def test_what_cannot_be_followed_proves_nothing(case):
    assert "cannot be traced" in slot(owner_with(NOT_FOLLOWED[case]))


def test_a_forward_of_the_instance_proves_nothing():
    owner = owner_with(PROVEN["plain"])
    owner.forward = lambda x: owner.conv(x)
    assert "forward of its own" in slot(owner)


def test_a_place_that_is_used_elsewhere_is_none():
    owner = owner_with(PROVEN["plain"])
    owner.also = owner.place
    assert isinstance(slot(owner), str)


def test_a_place_behind_the_end_of_a_block():
    """What a block hands out may pass its hooks: the activation stays within the forward that ran it."""
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 1, 1)), nn.Identity())
    slots = Slots(dict(model.named_modules(remove_duplicate=False)))
    assert isinstance(slots.find("0.0", 2), str)
