"""Which norm follows which layer: what forwards show, what the order tells, and what nobody can know."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qdeq
from qdeq.tree.norms import norms_behind
from tests.helpers.norm_models import Dense, Points, UNet


class Owner(nn.Module):
    """Two convolutions, then two norms of the same size: their order tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.m, self.n = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.drop, self.inner = nn.Dropout(), nn.Sequential(nn.Identity(), nn.ReLU())
        self.norms = [self.m, self.n]


def owner_with(forward):
    return type("Written", (Owner,), {"forward": forward})()


def _loop(self, x):
    for layer, norm in zip((self.a, self.b), self.norms, strict=True):
        x = F.relu(norm(layer(x)))
    return x


def _functional(self, x):
    n = self.n
    return F.batch_norm(self.m(self.a(x)), n.running_mean, n.running_var, n.weight, n.bias) + F.batch_norm(
        self.b(x), running_mean=n.running_mean, running_var=n.running_var
    )


SHOWN = {
    "one after the other": (lambda self, x: self.m(self.b(self.n(self.a(x)))), {"a": "n", "b": "m"}),
    "in a loop over a list": (_loop, {"a": "m", "b": "n"}),
    "a function": (
        lambda self, x: F.batch_norm(self.a(x), self.n.running_mean, self.n.running_var, training=False),
        {"a": "n"},
    ),
    "a norm that runs on another norm's output, too": (_functional, {"a": "m"}),
    "shared by two layers": (lambda self, x: self.m(self.a(x)) + self.m(self.b(x)), {"a": "m", "b": "m"}),
    "dropout between": (lambda self, x: self.n(self.drop(self.a(x))), {"a": "n"}),
    "reshaped between": (lambda self, x: self.n(self.a(x).flatten(2).view(x.size(0), 4, 1, -1)), {"a": "n"}),
    "asked for its shape": (lambda self, x: (lambda y: self.n(y).view(y.shape[0], -1))(self.a(x)), {"a": "n"}),
    "an activation between": (lambda self, x: self.n(self.inner(self.a(x))), {}),
    "a norm before": (lambda self, x: self.a(F.relu(self.m(x))) + self.b(F.relu(self.n(x))), {}),
    "used before the norm": (lambda self, x: (lambda y: self.n(y) + y)(self.a(x)), {}),
    "a layer with a norm for each call": (lambda self, x: self.m(self.a(x)) + self.n(self.a(x)), {}),
    "a norm that runs on other values": (lambda self, x: self.m(self.a(x)) + self.m(x), {}),
    "norms that never run": (lambda self, x: self.b(self.a(x)), {}),
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_forward_shows_it(case):
    forward, expected = SHOWN[case]
    found = norms_behind(owner_with(forward))
    assert found.pairs == expected
    assert found.possible == {}


def _untraced(self, x):
    return self.n(self.b(F.relu(self.m(self.a(x))))) if x.sum() > 0 else x


def test_where_nothing_tells_all_that_is_possible_is_said_and_can_be_stated():
    model = owner_with(_untraced)
    found = norms_behind(model)
    assert found.pairs == {}
    assert found.possible == {"m": ("a", "b"), "n": ("a", "b")}
    with pytest.raises(
        qdeq.QdeqValueError, match=r"here: .* got m behind a or b; n behind a or b. State norms={'a': 'm'"
    ):
        found.refuse_possible("here", ["m", "n"])
    found.refuse_possible("here", ["other"])
    assert norms_behind(model, {"a": "m"}).pairs == {"a": "m", "b": "n"}
    assert norms_behind(model, {"a": "n", "b": "m"}).pairs == {"a": "n", "b": "m"}
    assert norms_behind(model, layers=["b"], norms=["n"]).pairs == {"b": "n"}


def test_what_is_stated_goes_before_the_forward():
    found = norms_behind(owner_with(SHOWN["dropout between"][0]), {"b": "n"})
    assert found.pairs == {"b": "n"}


@pytest.mark.parametrize(
    ("stated", "error", "words"),
    [
        (["a"], qdeq.QdeqTypeError, r"expected a dict of str to str, got \['a'\]"),
        ({"a": 1}, qdeq.QdeqTypeError, "expected a dict of str to str"),
        ({"x": "m"}, qdeq.QdeqValueError, "linears and convolutions as keys, got 'x'"),
        ({"m": "m"}, qdeq.QdeqValueError, "linears and convolutions as keys, got 'm'"),
        ({"a": "b"}, qdeq.QdeqValueError, "batch norms as values, got 'b'"),
        ({"a": "wide"}, qdeq.QdeqValueError, "'wide' with 5 channels behind 'a' with 4"),
    ],
)
def test_what_cannot_be_meant_is_refused(stated, error, words):
    model = owner_with(_untraced)
    model.wide = nn.BatchNorm2d(5)
    with pytest.raises(error, match=words):
        norms_behind(model, stated)


LATE = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "fc1": "bn4"}


def test_late_norms():
    assert norms_behind(Points()).pairs == LATE
    told_by_channels = norms_behind(Points(traced=False, widths=(6, 8, 16, 12)))
    assert (told_by_channels.pairs, told_by_channels.possible) == (LATE, {})
    untold = norms_behind(Points(traced=False))
    assert untold.pairs == {"conv3": "bn3"}
    assert untold.possible == dict.fromkeys(("bn1", "bn2", "bn4"), ("conv1", "conv2", "fc1"))


def test_dense_layers_and_transposed_convolutions():
    layers = {f"layers.{i}.conv1": f"layers.{i}.norm2" for i in range(2)}
    assert norms_behind(Dense()).pairs == {"conv0": "norm0"} | layers
    assert norms_behind(UNet()).pairs == {"down.0": "down.1", "low.0": "low.1", "out.0": "out.1", "up": "norm"}


class Blocks(nn.Module):
    """Its own forward cannot be traced; those of its blocks can."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.around = Across()

    def forward(self, x):
        return self.around(self.plain(x)) if x.sum() > 0 else x


class Across(nn.Module):
    """Layer and norm in different blocks, one of them in a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU())
        self.before = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)))
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.last(self.after(self.before(x)))


def test_parts_are_followed_where_the_whole_cannot_be_traced():
    found = norms_behind(Blocks())
    assert found.pairs == {"plain.1": "plain.2", "around.before.0.0": "around.after.1"}
    assert found.possible == {}


def test_a_block_that_runs_on_its_own_output_is_followed_to_an_end():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = Repeated(), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.inner(x)) if x.sum() > 0 else x

    class Repeated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.conv, self.norm = nn.Sequential(nn.Dropout()), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.drop(self.drop(self.conv(x))))

    found = norms_behind(Around())
    assert found.pairs.items() <= {"inner.conv": "inner.norm"}.items()


def test_a_layer_in_another_block_is_possible_where_the_forward_is_not_known():
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.norm = nn.Sequential(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.block(x)) if x.sum() > 0 else x

    found = norms_behind(Apart())
    assert (found.pairs, found.possible) == ({}, {"norm": ("block.0",)})


def test_one_after_the_other_is_told_by_the_order():
    class Usual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.m, self.b, self.n, self.last = (
                *(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)),
                nn.Linear(4, 4),
            )

        def forward(self, x):
            return self.last(self.n(self.b(self.m(self.a(x))))) if x.sum() > 0 else x

    model = Usual()
    assert norms_behind(model).pairs == {"a": "m", "b": "n"}
    assert torch.equal(model.m.running_mean, torch.zeros(4))
