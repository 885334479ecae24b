"""How things are called: names that can be imported, texts that fit, JSON that every reader takes."""

from __future__ import annotations

import importlib
import json
import math
import types

import pytest
import torch
import torch.ao.nn.intrinsic.qat
import torch.ao.nn.intrinsic.quantized
import torch.ao.nn.qat
import torch.ao.nn.quantized.dynamic
import torch.ao.nn.quantized.reference
import torch.ao.nn.sparse.quantized
from torch import nn

from qdeq.layers import fused
from qdeq.words import class_name, clip, dtype_name, error_line, join, percent_digits, shape_text, strict_json

HOMES = (
    torch.nn,
    torch.ao.nn.intrinsic,
    torch.ao.nn.intrinsic.qat,
    torch.ao.nn.intrinsic.quantized,
    torch.ao.nn.qat,
    torch.ao.nn.quantized,
    torch.ao.nn.quantized.dynamic,
    torch.ao.nn.quantized.reference,
    torch.ao.nn.sparse.quantized,
    fused,
)
CLASSES = sorted(
    {
        kind
        for home in HOMES
        for kind in vars(home).values()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and not issubclass(kind, torch.jit.ScriptModule)
    },
    key=lambda kind: (kind.__module__, kind.__qualname__),
)


def named(kind: type) -> str:
    return class_name(object.__new__(kind))


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
def test_a_class_is_called_as_it_is_imported(kind):
    module, _, name = named(kind).rpartition(".")
    assert getattr(importlib.import_module(module), name) is kind


def test_torchs_classes_are_called_without_their_files():
    assert class_name(nn.Linear(1, 1)) == "torch.nn.Linear"
    assert named(torch.ao.nn.quantized.Conv2d) == "torch.ao.nn.quantized.Conv2d"
    assert named(torch.ao.nn.intrinsic.quantized.ConvReLU2d) == "torch.ao.nn.intrinsic.quantized.ConvReLU2d"
    assert named(torch.ao.nn.quantized.dynamic.LSTM) == "torch.ao.nn.quantized.dynamic.LSTM"


def test_our_own_classes_are_called_with_their_files():
    assert named(fused.ConvReLU2d) == "qdeq.layers.fused.ConvReLU2d"


@pytest.mark.parametrize("module", ["pkg.modules.x", "torch_extras.nn.modules.linear", "modules.x"])
def test_a_users_class_is_not_cut(module):
    kind = types.new_class("Foo", (nn.Module,), exec_body=lambda body: body.update(__module__=module))
    assert class_name(kind()) == f"{module}.Foo"


def test_dtypes_and_shapes():
    assert [dtype_name(dtype) for dtype in (torch.qint8, torch.bfloat16)] == ["qint8", "bfloat16"]
    assert [shape_text(shape) for shape in ((64, 3, 3, 3), (5,), (), torch.Size((2, 0)))] == [
        "64x3x3x3", "5", "scalar", "2x0",
    ]  # fmt: skip
    assert (join("", "weight"), join("a.b", "weight")) == ("weight", "a.b.weight")


def test_a_clipped_text_is_as_wide_as_it_may_be():
    assert clip("abcdef", 6) == "abcdef"
    assert clip("abcdefg", 6) == "abcde…"
    assert clip("abcdefg", 6, "...") == "abc..."


def test_shares():
    assert [percent_digits(share) for share in (None, 0.0, 0.12345, 1.0)] == ["", "0.00", "12.35", "100.00"]


def test_an_error_is_one_line():
    assert error_line(ValueError("first\nsecond")) == "ValueError: first"
    assert error_line(KeyError()) == "KeyError: "


def test_json_has_no_numbers_that_are_none():
    value = {1: (math.inf, -math.inf, math.nan), "a": [{"b": None, "c": True, "d": 1.5}]}
    text = strict_json(value)
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found == {"1": ["inf", "-inf", "nan"], "a": [{"b": None, "c": True, "d": 1.5}]}
    assert "\n" not in strict_json(value, indent=None)
