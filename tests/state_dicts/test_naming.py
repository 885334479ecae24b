"""Which key becomes which name, on plain keys."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import qdeq
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Cell, Packed
from qdeq.state_dicts.rnn import RnnShape


def plan(sources: dict[str, Any], **options: Any):
    return plan_names("here", sources, lambda v: tuple(v.shape) if isinstance(v, Tensor) else None, **options)


def cell(inputs: int, hidden: int) -> Cell:
    bias = torch.zeros(4 * hidden)
    return Cell(Packed(torch.zeros(4 * hidden, inputs), bias), Packed(torch.zeros(4 * hidden, hidden), bias))


W, B = torch.zeros(2, 2), torch.zeros(2)
PAIR = Packed(W, B)


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("a.weight", W, ["a.weight"]),
        ("a._packed_params._packed_params", PAIR, ["a.weight", "a.bias"]),
        ("_packed_params._packed_params", PAIR, ["weight", "bias"]),
        ("a._packed_params._packed_params", Packed(W, None), ["a.weight"]),
        ("a._packed_params.weight", W, ["a.weight"]),
        ("a._packed_params._packed_weight", W, ["a.weight"]),
        ("a._packed_params._packed_weight", Packed(W, None), ["a.weight"]),
        ("a._packed_params", PAIR, ["a.weight", "a.bias"]),
        ("_packed_weight_3", PAIR, ["_packed_weight_3.weight", "_packed_weight_3.bias"]),
        ("sub._packed_weight_0", PAIR, ["sub._packed_weight_0.weight", "sub._packed_weight_0.bias"]),
        ("a._packed_weight_ih", PAIR, ["a.weight_ih", "a.bias_ih"]),
        ("_packed_weight_hh", PAIR, ["weight_hh", "bias_hh"]),
        ("constants.4", PAIR, ["constants.4.weight", "constants.4.bias"]),
        ("m.layers.1.layer_bw.cell.hgates.weight", W, ["m.weight_hh_l1_reverse"]),
        ("layers.0.layer_fw.cell.igates._packed_params._packed_params", PAIR, ["weight_ih_l0", "bias_ih_l0"]),
    ],
)  # fmt: skip
def test_names(key: str, value: object, names: list[str]) -> None:
    assert list(plan({key: value}).targets) == names


@pytest.mark.parametrize(
    ("scale", "zero_point", "path"),
    [
        ("a.scale", "a.zero_point", "a"),
        ("scale", "zero_point", ""),
        ("_scale_3", "_zero_point_3", "_3"),
        ("_input_scale_0", "_input_zero_point_0", "_input_0"),
        ("a_input_scale_0", "a_input_zero_point_0", "a_input_0"),
    ],
)
def test_activation_scales(scale: str, zero_point: str, path: str) -> None:
    found = plan({"w": W, scale: torch.tensor(0.5), zero_point: torch.tensor([3])})
    assert list(found.targets) == ["w"]
    assert list(found.activations) == [path]


def test_a_parameter_called_scale_is_kept() -> None:
    assert set(plan({"norm.scale": B, "norm.zero_point": B, "layer.scale": B}).targets) == {
        "norm.scale",
        "norm.zero_point",
        "layer.scale",
    }


@pytest.mark.parametrize(
    ("cells", "last"),
    [
        ([(3, 4)], "weight_hh_l0"),
        ([(3, 4), (4, 4)], "weight_hh_l1"),
        ([(3, 4), (3, 4)], "weight_hh_l0_reverse"),
        ([(4, 4), (4, 4), (4, 4)], "weight_hh_l2"),
        ([(4, 4), (4, 4), (4, 4), (4, 4)], "weight_hh_l3"),
        ([(4, 4), (4, 4), (8, 4), (8, 4)], "weight_hh_l1_reverse"),
    ],
)
def test_layers_and_directions_by_input_size(cells: list[tuple[int, int]], last: str) -> None:
    sources = {f"rnn._all_weight_values.{at}.param": cell(*sizes) for at, sizes in enumerate(cells)}
    names = [name for name in plan(sources).targets if "weight_hh" in name]
    assert names[-1] == f"rnn.{last}"


def test_layers_and_directions_that_keys_do_not_tell() -> None:
    sources = {f"rnn._all_weight_values.{at}.param": cell(4, 4) for at in range(2)}
    with pytest.raises(qdeq.QdeqValueError, match=r"here: rnn: .*one bidirectional layer"):
        plan(sources)
    assert "rnn.weight_ih_l0_reverse" in plan(sources, rnn_shapes={"rnn": RnnShape(1, True)}).targets
    assert "rnn.weight_ih_l1" in plan(sources, rnn_shapes={"rnn": RnnShape(2, False)}).targets


def test_observers_are_dropped_by_name() -> None:
    sources = {"a.weight": W, "a.weight_fake_quant.scale": B, "a.activation_post_process.min_val": B}
    found = plan(sources)
    assert list(found.targets) == ["a.weight"]
    assert set(found.dropped) == set(sources) - {"a.weight"}
