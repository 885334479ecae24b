"""Weights below each other: the float bits of each part, and integers where that can be."""

from __future__ import annotations

import pytest
import torch

import qdeq
from qdeq.state_dicts.values import stack_weights, stacked_kind
from qdeq.weights.weight import QuantizedWeight
from tests.helpers.models import assert_same_bits


def per_tensor(scale=0.1, zero_point=3, dtype=torch.qint8):
    ints = torch.randint(-128, 128, (3, 5)) if dtype != torch.quint8 else torch.randint(0, 256, (3, 5))
    ints = ints.to({torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}[dtype])
    return QuantizedWeight.from_tensor(torch._make_per_tensor_quantized_tensor(ints, scale, zero_point))


def per_channel(axis=0):
    scales = torch.rand((3, 5)[axis], dtype=torch.float64) + 0.01  # true doubles: float32 would round differently
    ints = torch.randint(-128, 128, (3, 5), dtype=torch.int8)
    zeros = torch.zeros_like(scales, dtype=torch.int64)
    return QuantizedWeight.from_tensor(torch._make_per_channel_quantized_tensor(ints, scales, zeros, axis))


def floats(value):
    return value.dequantize() if isinstance(value, QuantizedWeight) else value.float()


CASES = {
    "per tensor": lambda: [per_tensor(0.1), per_tensor(1 / 3), per_tensor(7e-3, -100)],
    "per channel": lambda: [per_channel(), per_channel()],
    "mixed": lambda: [per_tensor(1 / 3), per_channel()],
    "other axis": lambda: [per_channel(1), per_channel(1)],
    "two dtypes": lambda: [per_tensor(), per_tensor(dtype=torch.quint8)],
    "wide": lambda: [per_tensor(dtype=torch.qint32), per_tensor(dtype=torch.qint32)],
    "quantized and float": lambda: [per_tensor(), torch.randn(3, 5)],
    "half": lambda: [torch.randn(3, 5).half(), torch.randn(3, 5).half()],
    "half and float": lambda: [torch.randn(3, 5).half(), torch.randn(3, 5)],
}


class Described:
    """A tensor by torch's names, as a file describes it."""

    def __init__(self, value):
        plain = isinstance(value, torch.Tensor)
        self.dtype = str(value.dtype).removeprefix("torch.")
        self.qscheme, self.axis = (None, None) if plain else (value.qscheme, value.axis)


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_the_parts(name):
    torch.manual_seed(5)
    parts = CASES[name]()
    result = stack_weights("here", parts)
    assert_same_bits(floats(result), torch.cat([floats(part) for part in parts]))
    kind = Described(result)
    assert stacked_kind([Described(part) for part in parts]) == (kind.dtype, kind.qscheme, kind.axis)
    assert isinstance(result, QuantizedWeight) == (name in ("per tensor", "per channel", "mixed"))


def test_other_dtypes_are_refused():
    with pytest.raises(qdeq.QdeqValueError, match=r"here: expected floating point tensors, got torch.int64"):
        stack_weights("here", [torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5)])
