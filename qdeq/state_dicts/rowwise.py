"""Embedding tables quantized row by row: each row of bytes ends with its own scale and offset.

FBGEMM's and torchrec's form (``embedding_bag_byte_prepack`` and ``embedding_bag_4bit_prepack`` in torch,
``aten/src/ATen/native/quantized/cpu/qembeddingbag_prepack.cpp``; read as ``qembeddingbag_unpack.cpp`` does):

* 8 bits: (rows, columns + 8) uint8. The last 8 bytes are scale and offset, float32.
* 4 bits: (rows, columns / 2 + 4) uint8, two values a byte, low bits first. The last 4 bytes are scale and offset,
  float16.

A value is ``integer * scale + offset``, in float32, product and sum each rounded. The bytes alone do not say that they
are such a table, so it is read as one only when its name is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdeq.errors import refuse

__all__ = ["ROWWISE_BITS", "looks_rowwise", "rowwise_shape", "rowwise_values"]

ROWWISE_BITS = {8: torch.float32, 4: torch.float16}
"""Bits of a value -> dtype of the scale and offset behind a row."""

_ROWS_LOOKED_AT = 256
_LARGEST = 1e4  # of a scale or an offset: other bytes read as float32 are mostly far larger, or NaN


def rowwise_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The shape of the float table that rows of bytes stand for; () where they are none."""
    tail = 2 * ROWWISE_BITS[bits].itemsize
    return (shape[0], (shape[1] - tail) * 8 // bits) if len(shape) == 2 and shape[1] > tail else ()


def rowwise_values(where: str, table: Tensor, bits: int) -> Tensor:
    """The float32 table of :func:`rowwise_shape`.

    Raises:
        QdeqValueError: ``table`` is no uint8 table of rows that are long enough, or a scale or offset is not finite.

    """
    if table.dtype != torch.uint8 or not rowwise_shape(tuple(table.shape), bits):
        what = f"rows of uint8, of {bits}-bit values with scale and offset behind them"
        got = f"{table.dtype} of shape {tuple(table.shape)}"
        refuse(where, what, got, "Name tables of this form only in rowwise.")
    values, scale, offset = _parts(table, bits)
    if not bool(torch.isfinite(scale).all() and torch.isfinite(offset).all()):
        got = "one that is infinite or NaN"
        refuse(where, "a finite scale and offset behind each row", got, "It is no table of this form, or damaged.")
    return values.float() * scale.float() + offset.float()


def looks_rowwise(table: Tensor) -> bool:
    """Whether the first rows of a uint8 table end with what can be a float32 scale and offset."""
    if table.dtype != torch.uint8 or not rowwise_shape(tuple(table.shape), 8) or not table.shape[0]:
        return False
    _, scale, offset = _parts(table[:_ROWS_LOOKED_AT], 8)
    return bool(((scale >= 0) & (scale < _LARGEST) & (offset.abs() < _LARGEST)).all() and scale.any())


def _parts(table: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    dtype = ROWWISE_BITS[bits]
    tail = 2 * dtype.itemsize
    behind = table[:, -tail:].contiguous().view(dtype)
    values = table[:, :-tail]
    if bits == 4:
        values = torch.stack([values & 15, values >> 4], -1).flatten(1)
    return values, behind[:, :1], behind[:, 1:]
