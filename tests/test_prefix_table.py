"""A slice of ``tools/prefix_table.py``: one model of torchvision's under the wrappers that ask most of names."""

from __future__ import annotations

import pytest

from tools.models import converted_model, example, float_model
from tools.prefix_table import EXTRA, WRAPPERS, models, problem

HARD = ["module.model.", "a part under module.", "Lightning"]


@pytest.fixture(scope="module")
def resnet():
    return converted_model("resnet18"), float_model("resnet18"), example("resnet18")


@pytest.mark.parametrize("wrapper", HARD)
def test_a_wrapped_model_is_loaded_into_the_float_class(resnet, wrapper):
    int8, plain, x = resnet
    assert problem(int8, WRAPPERS[wrapper](int8.state_dict()), plain, x) == ""


def test_vgg_with_norms_is_loaded():
    ((_, int8, plain, x),) = models([EXTRA])
    assert problem(int8, WRAPPERS["Lightning"](int8.state_dict()), plain, x) == ""


def test_a_load_that_is_wrong_is_seen(resnet):
    int8, plain, x = resnet
    state = dict(int8.state_dict())
    assert "fc.weight" in problem(int8, {k: v for k, v in state.items() if not k.startswith("fc.")}, plain, x)
    first = "conv1.weight"
    assert "differ" in problem(int8, {**state, first: -state[first].dequantize()}, plain, x)
