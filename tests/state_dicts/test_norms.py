"""Norms behind layers by the names of a state dict alone: what is said agrees with the forward."""

from __future__ import annotations

import pytest
from torch import nn

from qdeq.state_dicts.norms import norms_behind_names
from qdeq.tree.norms import norms_behind
from tests.helpers.norm_models import Dense, Points, UNet
from tools.models import float_model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def as_safetensors_sorts(names: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return dict(sorted(names.items(), key=lambda item: (bool(item[1]), item[0])))


@pytest.mark.parametrize("model", [Dense(), UNet(), float_model("resnet18")], ids=["dense", "unet", "resnet18"])
def test_the_order_of_a_state_dict_tells(model):
    found = norms_behind_names(shapes(model))
    assert found.pairs == norms_behind(model).pairs
    assert found.possible == {}


@pytest.mark.parametrize("model", [Points(), Dense(), UNet(), float_model("resnet18"), float_model("mobilenet_v2")])
@pytest.mark.parametrize("order", [dict, as_safetensors_sorts])
def test_nothing_wrong_is_said_and_nothing_is_left_out(model, order):
    found, true = norms_behind_names(order(shapes(model))), norms_behind(model).pairs
    assert found.pairs.items() <= true.items()
    for layer, norm in true.items():
        assert found.pairs.get(layer) == norm or layer in found.possible[norm]


def test_numbered_modules_keep_their_order_in_a_sorted_file():
    model = nn.Sequential(*(part for _ in range(6) for part in (nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))))
    found = norms_behind_names(as_safetensors_sorts(shapes(model)))
    assert found.pairs == {str(i): str(i + 1) for i in range(0, 12, 2)}


def test_late_norms_of_one_size_are_not_guessed():
    found = norms_behind_names(shapes(Points()))
    assert found.pairs == {}
    assert found.possible["bn3"] == ("conv3",)  # which, transposed, would have the channels of the others, too
    assert all({"conv1", "conv2", "fc1"} <= set(found.possible[norm]) for norm in ("bn1", "bn2", "bn4"))


def test_a_transposed_convolution_counts_before_a_layer_that_only_has_the_size():
    first, up, norm = nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(16, 8, 2), nn.BatchNorm2d(8)
    model = nn.ModuleDict({"first": first, "up": up, "norm": norm})
    assert norms_behind_names(shapes(model)).possible == {"norm": ("first", "up")}
    assert norms_behind_names(as_safetensors_sorts(shapes(model))).possible == {"norm": ("first", "up")}
