"""How the names of two sides meet: what was put in front, in the middle, or around a part."""

from __future__ import annotations

import pytest

from qdeq.errors import QdeqValueError
from qdeq.state_dicts.prefixes import find_renaming

TARGET = {"conv.weight": (8, 3), "bn.weight": (8,), "fc.weight": (4, 8), "fc.bias": (4,)}
SOURCE = {"conv.weight": (8, 3), "conv.bias": (8,), "fc.weight": (4, 8), "fc.bias": (4,)}


def below(front, names=None):
    return {front + name: shape for name, shape in (SOURCE if names is None else names).items()}


def renaming(sources, targets=TARGET, **options):
    return find_renaming("here", sources, targets, "Choose.", **options)


FRONTS = ["", "module.", "model.", "module.model.", "state_dict.model.module.", "_orig_mod.", "a.b.c."]


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_of_the_source_goes(front):
    found = renaming({"epoch": (), **below(front)})
    assert {name: found(name) for name in below(front)} == {front + name: name for name in SOURCE}
    assert found("epoch") == "epoch"
    assert (f"{front!r} -> ''" in found.text) == bool(front)


@pytest.mark.parametrize("front", FRONTS)
def test_a_front_of_the_target_is_added(front):
    found = renaming(SOURCE, {"loss.weight": (2,), **below(front, TARGET)})
    assert {name: found(name) for name in SOURCE} == {name: front + name for name in SOURCE}


def test_both_sides_may_have_one():
    assert renaming(below("module."), below("model.", TARGET))("module.fc.bias") == "model.fc.bias"
    assert renaming(below("net."), below("model.", TARGET))("net.fc.bias") == "model.fc.bias"


def test_wrappers_in_the_middle_and_in_front():
    sources = {"net.conv.module.weight": (8, 3), "net.conv.module.bias": (8,), "net.fc.weight": (4, 8)}
    found = renaming(sources)
    assert [found(name) for name in sources] == ["conv.weight", "conv.bias", "fc.weight"]
    assert "'net.conv.module.' -> 'conv.'" in found.text


def test_names_that_were_not_compared_go_where_their_module_goes():
    found = renaming(below("net."), {"x.conv.weight": (8, 3), "x.fc.weight": (4, 8), "x.fc.bias": (4,)})
    assert found("net.conv.bias") == "x.conv.bias"
    assert found("net.act.alpha") == "x.act.alpha"
    assert found("net.conv") == "x.conv"


@pytest.mark.parametrize("fronts", [("model.", "ema."), ("model.", "ema.module."), ("a.b.", "a.c."), ("module.", "x.")])
def test_two_parts_that_fit_are_listed(fronts):
    with pytest.raises(QdeqValueError, match="one part of the source that fits, got 2: below .*Choose"):
        renaming({**below(fronts[0]), **below(fronts[1])})


def test_a_copy_without_statistics_fits_too():
    targets = {**TARGET, "bn.running_mean": (8,)}
    with pytest.raises(QdeqValueError, match="below 'ema.', 'model.'"):
        renaming({**below("model.", targets), **below("ema.", TARGET)}, targets)


def test_two_parts_of_the_target_are_listed():
    with pytest.raises(QdeqValueError, match="one part of the target that fits, got 2: below 'k.', 'q.'"):
        renaming(SOURCE, {**below("q.", TARGET), **below("k.", TARGET)})


def test_equal_names_win_over_a_front_that_fits():
    whole = {name: TARGET[name] for name in TARGET}
    found = renaming({**whole, **below("ema.", TARGET)})
    assert found("ema.fc.weight") == "ema.fc.weight"
    assert not found.text


def test_a_layer_of_an_auxiliary_part_is_not_mixed_in():
    sources = {"conv.weight": (8, 3), "aux.fc.weight": (4, 8), "aux.fc.bias": (4,)}
    assert all(renaming(sources)(name) == name for name in sources)


def test_parts_of_one_model_with_fronts_of_their_own():
    found = renaming({"a.conv.weight": (8, 3), "b.fc.weight": (4, 8), "b.fc.bias": (4,)})
    assert found("a.conv.weight") == "conv.weight"
    assert found("b.fc.bias") == "fc.bias"


def test_shapes_decide_between_names():
    other = {name: tuple(size + 1 for size in shape) for name, shape in SOURCE.items()}
    assert renaming({**below("a.", other), **below("b.")})("b.fc.weight") == "fc.weight"


def test_wrong_shapes_are_still_named():
    other = {name: tuple(size + 1 for size in shape) for name, shape in SOURCE.items()}
    assert renaming(below("net.", other))("net.fc.weight") == "fc.weight"


def test_names_can_be_taken_as_they_are():
    found = renaming(below("net."), as_they_are=True)
    assert found("net.fc.weight") == "net.fc.weight"


@pytest.mark.parametrize(("sources", "targets"), [({}, TARGET), (SOURCE, {}), ({}, {})])
def test_nothing_meets_nothing(sources, targets):
    assert renaming(sources, targets)("fc.weight") == "fc.weight"


def test_deep_names_are_no_trap():
    deep = ".".join(["a"] * 100_000)
    found = renaming({f"{deep}.weight": (1,), **SOURCE}, {f"{deep}.b.weight": (1,), **TARGET})
    assert found("fc.weight") == "fc.weight"
