from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qdeq.tree.copying import blank, copied, copy_module


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.b = self.a
        self.names = {"x": ["y"]}
        self.inside = [self.a[0], (self.a[1],)]
        self.register_buffer("count", torch.ones(2, dtype=torch.int64), persistent=False)
        self.seen = []
        self.a[0].register_forward_hook(self.look)

    def look(self, module, inputs, output):
        self.seen.append(tuple(output.shape))

    def forward(self, x):
        return self.a(x)


def test_a_copy_is_what_deepcopy_makes():
    owner = Owner().eval()
    owner.a[0].weight.requires_grad_(False)
    new, old = copy_module(owner, {}), copy.deepcopy(owner)
    assert list(new.__dict__) == list(old.__dict__)
    assert list(new.state_dict()) == list(old.state_dict())
    assert new.b is new.a is not owner.a
    assert new.inside[0] is new.a[0]
    assert new.inside[1][0] is new.a[1]
    assert new.names == owner.names
    assert new.names["x"] is not owner.names["x"]
    assert not new.a[0].weight.requires_grad
    assert new.a[0].weight.data_ptr() != owner.a[0].weight.data_ptr()
    new(torch.ones(4, 2))
    assert (new.seen, owner.seen) == ([(4, 3)], []), "the hook is bound to the copy"


def test_containers_that_two_modules_share_stay_shared():
    owner = nn.Sequential(nn.ReLU(), nn.ReLU())
    owner[1]._forward_hooks = owner[0]._forward_hooks
    new = copy_module(owner, {})
    assert new[1]._forward_hooks is new[0]._forward_hooks is not owner[0]._forward_hooks


def test_the_memo_decides_and_is_extended():
    owner = Owner()
    memo = {id(owner.a): owner.a}
    new = copy_module(owner, memo)
    assert new.a is owner.a
    assert memo[id(owner)] is new
    assert memo[id(owner.names)] is new.names


class Special(nn.Module):
    def __deepcopy__(self, memo):
        return nn.Tanh()


class Stateful(nn.Module):
    def __getstate__(self):
        return {**self.__dict__, "extra": 1}


@pytest.mark.parametrize("kind", [Special, Stateful])
def test_classes_that_say_how_to_copy_them_are_obeyed(kind):
    new = copied(nn.Sequential(kind()))
    assert type(new[0]) is (nn.Tanh if kind is Special else Stateful)
    assert (getattr(new[0], "extra", 0) == 1) is (kind is Stateful)


def test_blank_layers_are_those_of_the_class_without_its_random_numbers():
    state = torch.get_rng_state()
    one, two = (blank(nn.Conv2d, 3, 4, (2, 2), padding=(1, 1), bias=True) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    made = nn.Conv2d(3, 4, (2, 2), padding=(1, 1), device="meta")
    assert one.__dict__.keys() == made.__dict__.keys()
    assert repr(one) == repr(made)
    assert one.weight.is_meta
    assert one.weight.shape == made.weight.shape
    one._parameters["weight"] = nn.Parameter(torch.ones(1))
    one.register_forward_hook(print)
    three = blank(nn.Conv2d, 3, 4, (2, 2), padding=(1, 1), bias=True)
    for layer in (two, three):
        assert layer.weight.is_meta, "layers share their parameters"
        assert not layer._forward_hooks
