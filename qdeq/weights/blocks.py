"""Large weights in blocks of a few MB, so that memory stays small and results stay in the processor's cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import overload

import torch
from torch import Tensor

from qdeq.weights.block_weight import BlockWeight, take_part
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.weight import QuantizedWeight

__all__ = ["BLOCK_ELEMENTS", "Index", "Weight", "block_shape", "blocks", "float_block", "take", "weight_blocks"]

Weight = QuantizedWeight | BlockWeight | Tensor
Index = tuple[slice, ...]

BLOCK_ELEMENTS = 2 << 20
"""Elements in a block: 8 MB of float32."""


def blocks(
    shape: tuple[int, ...],
    elements: int = BLOCK_ELEMENTS,
    multiples: Sequence[int] = (),
    *,
    rows_only: bool = False,
) -> Iterator[Index]:
    """Split a tensor into runs that are contiguous in row-major order, and give them in that order.

    Args:
        shape: of the tensor; nothing is yielded for an empty one.
        elements: the most elements that a block has, except where a multiple has more.
        multiples: for each dimension: where it is cut into runs, they begin at a multiple of this; all if it is empty.
        rows_only: split along the first dimension only.

    Yields:
        One slice for each dimension that is cut; ``tensor[index]`` has as many dimensions as ``tensor``.

    """
    if math.prod(shape) == 0:
        return
    if not shape:
        yield ()
        return
    inner = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    cut = 0 if rows_only else next(dim for dim in range(len(shape)) if inner[dim] <= elements or inner[dim] == 1)
    multiple = multiples[cut] if multiples else 1
    step = max(multiple, elements // inner[cut] // multiple * multiple)
    for outer in itertools.product(*(range(size) for size in shape[:cut])):
        for start in range(0, shape[cut], step):
            yield (*(slice(i, i + 1) for i in outer), slice(start, min(start + step, shape[cut])))


def weight_blocks(value: Weight, elements: int = BLOCK_ELEMENTS) -> Iterator[Index]:
    """:func:`blocks` of a weight, each with whole bytes of packed values and whole blocks of one scale."""
    shape = tuple(value.shape)
    if isinstance(value, BlockWeight):
        return blocks(shape, elements, [step or 1 for step in value.block])
    packed = isinstance(value, QuantizedWeight) and value.integers.bits < 8
    return blocks(shape, elements, (8,) if packed else (), rows_only=packed)


def block_shape(shape: tuple[int, ...], index: Index) -> tuple[int, ...]:
    """Shape of ``tensor[index]`` for one of :func:`blocks`."""
    return tuple(part.stop - part.start for part in index) + shape[len(index) :]


@overload
def take(weight: QuantizedWeight, index: Index) -> QuantizedWeight: ...
@overload
def take(weight: BlockWeight, index: Index) -> BlockWeight: ...
def take(weight: QuantizedWeight | BlockWeight, index: Index) -> QuantizedWeight | BlockWeight:
    """Return one of :func:`weight_blocks` as a weight that shares the integers."""
    shape = block_shape(weight.shape, index)
    if isinstance(weight, BlockWeight):
        return take_part(weight, index, shape)
    if weight.integers.bits >= 8:
        ints = weight.int_repr[index]
    else:
        per_byte = 8 // weight.integers.bits
        row = math.prod(weight.shape[1:])
        first = index[0].start * row // per_byte if index else 0
        ints = weight.int_repr[first : first + -(-math.prod(shape) // per_byte)]
    scale, zero_point = weight.scale, weight.zero_point
    if weight.axis is not None and weight.axis < len(index):
        scale, zero_point = scale[index[weight.axis]], zero_point[index[weight.axis]]
    return replace(weight, int_repr=ints, scale=scale, zero_point=zero_point, shape=shape)


def float_block(value: Weight, index: Index, *, where: str, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return one of :func:`weight_blocks` as plain values of ``dtype`` (any for a tensor): contiguous, row by row.

    ``out`` takes the result: a contiguous tensor of the block's shape and of ``dtype``.
    """
    if isinstance(value, Tensor):
        part = value[index].detach()
        return part.to(dtype).contiguous() if out is None else out.copy_(part)
    block = take(value, index)
    if out is None:
        out = torch.empty(block.shape, dtype=dtype)
    return dequantize_source(block, where=where, out=out, dtype=dtype)
