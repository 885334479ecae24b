"""Two weights, value by value, in blocks: how many are equal bit for bit, and how far apart the others are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdeq.weights.blocks import Index, Weight, float_block, weight_blocks
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Difference", "compare", "equal_bits"]

_AS_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64, torch.complex64: torch.int64}
_AS_INTEGERS |= {torch.float16: torch.int16, torch.bfloat16: torch.int16}


@dataclass
class Difference:
    """What :func:`compare` found."""

    values: int = 0  # how many were compared
    equal: int = 0  # how many are equal bit for bit
    largest: float = 0.0  # largest absolute difference; NaN if one of the values is NaN or both are infinite
    total: float = 0.0  # sum of the absolute differences

    @property
    def share(self) -> float:
        """Share of values that are equal, 0 to 1."""
        return self.equal / self.values if self.values else 1.0

    @property
    def mean(self) -> float:
        """Mean absolute difference, over all values."""
        return self.total / self.values if self.values else 0.0

    def add(self, other: Difference) -> None:
        """Take in the result of another block or tensor."""
        self.values += other.values
        self.equal += other.equal
        self.total += other.total
        self.largest = math.nan if math.isnan(self.largest + other.largest) else max(self.largest, other.largest)


def equal_bits(a: Tensor, b: Tensor) -> Tensor:
    """Return where two tensors of one dtype and shape hold the same bits."""
    one_byte = a.is_floating_point() and a.dtype.itemsize == 1
    plain = torch.uint8 if one_byte else _AS_INTEGERS.get(a.dtype)
    if plain is None:
        return a == b
    return a.contiguous().view(plain) == b.contiguous().view(plain)


def compare(a: Weight, b: Weight, names: tuple[str, str]) -> Difference:
    """Compare two weights of one shape; quantized ones as the float32 values that they stand for.

    Tensors of up to 32 bits of floating point are compared as float32, which holds all their values; others as they
    are if both have one dtype, otherwise as float64. ``names`` are what errors call them.
    """
    dtypes = {_wide(a), _wide(b)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float64
    result = Difference()
    for index in weight_blocks(min(a, b, key=_bits)):
        result.add(_compare_block(_block(a, index, names[0], dtype), _block(b, index, names[1], dtype)))
    return result


def _wide(weight: Weight) -> torch.dtype:
    if not isinstance(weight, Tensor) or (weight.dtype.is_floating_point and weight.dtype.itemsize <= 4):
        return torch.float32
    return weight.dtype


def _bits(weight: Weight) -> int:
    return weight.integers.bits if isinstance(weight, QuantizedWeight) else 8


def _block(weight: Weight, index: Index, name: str, dtype: torch.dtype) -> Tensor:
    if not isinstance(weight, Tensor):
        return float_block(weight, index, where=name, dtype=torch.float32).to(dtype)
    return float_block(weight, index, where=name, dtype=dtype)


def _compare_block(a: Tensor, b: Tensor) -> Difference:
    same = equal_bits(a, b)
    equal = int(same.count_nonzero())
    if equal == a.numel():
        return Difference(equal, equal)
    wide = torch.complex128 if a.is_complex() else torch.float64
    apart = (a[~same].to(wide) - b[~same].to(wide)).abs()
    return Difference(a.numel(), equal, float(apart.max()), float(apart.sum()))
