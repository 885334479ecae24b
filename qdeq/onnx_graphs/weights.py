"""Weights of the float model: described first, computed when they are read, a few megabytes at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qdeq.errors import QdeqError, QdeqValueError, refuse
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.stored import TYPES, Stored, unpack_integers
from qdeq.weights.blocks import BLOCK_ELEMENTS, take, weight_blocks
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.integer_types import PER_CHANNEL, PER_TENSOR
from qdeq.weights.weight import QuantizedWeight

__all__ = ["ROW_STEP", "FloatWeight", "Rows", "quantized_weight"]

ROW_STEP = 8
"""Rows of packed integers are taken from a multiple of this on: it begins on a whole byte, whatever the width."""

# Integers that qdeq's kernels take: torch's name, and the bits to flip in each byte so that signed become unsigned.
_KERNELS = {
    "int8": ("qint8", 0, 0),
    "uint8": ("quint8", 0, 0),
    "int32": ("qint32", 0, 0),
    "int16": ("qint32", 0, 0),
    "uint16": ("qint32", 0, 0),
    "uint4": ("quint4x2", 0, 0),
    "int4": ("quint4x2", 0x88, 8),
    "uint2": ("quint2x4", 0, 0),
    "int2": ("quint2x4", 0xAA, 2),
}
Rows = Callable[[int, int], Tensor]


@dataclass(frozen=True, eq=False)
class FloatWeight:
    """A float initializer that the result gets.

    Attributes:
        name: of the initializer.
        source: name of the integers in the model.
        where: file and name of the integers, for errors.
        shape: of the float weight.
        dtype: float32, float16 or bfloat16.
        source_dtype: ONNX's name of the integers' type.
        scale: every scale, of any shape.
        zero_point: every zero point.
        axis: of the channels, where one scale holds for each; None per tensor, and for all that is no QuantizedWeight.
        source_bytes: size of the integers.
        note: a choice that was made, in words.
        integers: reads them as a QuantizedWeight; None where they are none: blocks, float8, other layouts.
        rows: reads the integers, and gives a function that computes rows ``start`` to ``stop`` along the first
            dimension, float32; None where ``integers`` is there.
        row_step: ``start`` has to be a multiple of this.

    """

    name: str
    source: str
    where: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source_dtype: str
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    source_bytes: int
    note: str = ""
    integers: Callable[[], QuantizedWeight] | None = None
    rows: Callable[[], Rows] | None = None
    row_step: int = ROW_STEP

    def __post_init__(self) -> None:
        if not bool(self.scale.isfinite().all()):
            remedy = "The weight is damaged or was never calibrated."
            refuse(self.where, "scales that are finite", "NaN or infinite ones", remedy)

    @property
    def bytes(self) -> int:
        """Size of the float values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def kernel_dtype(self) -> str:
        """Torch's name of the integers that :attr:`integers` gives: 16 bits are widened to 32."""
        return _KERNELS[self.source_dtype][0]

    @property
    def qscheme(self) -> str:
        """Torch's name of the scheme, or how it is called in ONNX."""
        if self.integers is None and self.scale.numel() > 1:
            return "blocks"
        return PER_TENSOR if self.axis is None else PER_CHANNEL

    def read(self) -> QuantizedWeight | Tensor:
        """The weight: integers with their scales where these say it all, else the float values."""
        return self.tensor() if self.integers is None else self.integers()

    def tensor(self) -> Tensor:
        """All float values."""
        out = torch.empty(self.shape, dtype=self.dtype)
        flat, at = out.view(-1), 0
        for count, fill in self.parts():
            fill(flat[at : at + count])
            at += count
        return out

    def parts(self) -> Iterator[tuple[int, Callable[[Tensor], object]]]:
        """The float values in row-major order, about :data:`BLOCK_ELEMENTS` at a time.

        Yields:
            How many values, and a function that computes them into a 1-d tensor of as many and of ``dtype``.

        """
        if self.integers is not None:
            weight = self.integers()
            for index in weight_blocks(weight):
                part = take(weight, index)
                yield math.prod(part.shape), functools.partial(self._compute, part)
            return
        assert self.rows is not None
        rows, count, row_len = self.rows(), self.shape[0] if self.shape else 1, math.prod(self.shape[1:])
        step = max(1, BLOCK_ELEMENTS // max(1, row_len) // self.row_step) * self.row_step
        for start in range(0, count if row_len else 0, step):
            stop = min(start + step, count)
            yield (stop - start) * row_len, functools.partial(self._copy, rows, start, stop)

    def _compute(self, part: QuantizedWeight, out: Tensor) -> None:
        # ONNX allows scales of 0 and below: ONNX Runtime's own 4-bit quantizer makes negative ones.
        into = out.view(part.shape)
        dequantize_source(part, where=self.where, out=into, dtype=self.dtype, allow_bad_scales=True)

    def _copy(self, rows: Rows, start: int, stop: int, out: Tensor) -> None:
        out.copy_(rows(start, stop).reshape(-1))


def quantized_weight(name: str, ints: Stored, q: Qparams, dtype: torch.dtype, note: str = "") -> FloatWeight:
    """A weight as DequantizeLinear makes it: per tensor, per channel or in blocks.

    Args:
        name: of the float initializer.
        ints: the integers, or 8-bit floats.
        q: scale and zero point.
        dtype: of the result.
        note: a choice that was made, in words.

    Raises:
        QdeqValueError: scales that do not fit the shape.

    """
    kind = TYPES[ints.code].name
    facts = (name, ints.name, ints.where, ints.shape, dtype, kind, q.scale, q.zero_point)
    _check_shape(ints, q)
    if q.block or kind not in _KERNELS:
        return FloatWeight(*facts, None, ints.bytes, note, rows=lambda: _rows(ints, q))
    return FloatWeight(*facts, q.axis, ints.bytes, note, integers=lambda: _integers(ints, q))


def _check_shape(ints: Stored, q: Qparams) -> None:
    remedy = "The model is damaged, or the axis is wrong."
    if q.axis is None:
        return
    if not 0 <= q.axis < len(ints.shape):
        refuse(f"{ints.where}: axis", f"one of {len(ints.shape)} dimensions", str(q.axis), remedy)
    size = ints.shape[q.axis]
    wanted: tuple[int, ...] = (size,)
    if q.block:
        wanted = tuple(-(-n // q.block) if dim == q.axis else n for dim, n in enumerate(ints.shape))
    if tuple(q.scale.shape) != wanted:
        what = f"scales of shape {wanted} for axis {q.axis} of {ints.shape}"
        refuse(f"{ints.where}: scale {q.names[0]!r}", what, str(tuple(q.scale.shape)), remedy)


def _integers(ints: Stored, q: Qparams) -> QuantizedWeight:
    dtype, flip, offset = _KERNELS[TYPES[ints.code].name]
    values = ints.read()
    if TYPES[ints.code].name in ("int16", "uint16"):
        values = values.int()
    if flip:
        values = values ^ flip
    scheme = PER_TENSOR if q.axis is None else PER_CHANNEL
    scale, zero_point = q.scale.double().contiguous(), (q.zero_point + offset).contiguous()
    try:
        return QuantizedWeight(values, scale, zero_point, q.axis, scheme, dtype, ints.shape, ints.where)
    except QdeqError as error:
        raise QdeqValueError(f"{ints.where}: {error}") from error


def _rows(ints: Stored, q: Qparams) -> Rows:
    """Rows by the formula of DequantizeLinear: float32, one product; for blocks, and for 8-bit floats."""
    values = ints.read()

    def spread(qparam: Tensor, start: int, stop: int) -> Tensor:
        """One value for each element of the rows, or one that broadcasts."""
        if q.axis is None:
            return qparam
        if not q.block:
            part = qparam[start:stop] if q.axis == 0 else qparam
            return part.reshape([-1 if dim == q.axis else 1 for dim in range(len(ints.shape))])
        at = torch.arange(start, stop) if q.axis == 0 else torch.arange(ints.shape[q.axis])
        part = qparam if q.axis == 0 else qparam[start:stop]
        return part.index_select(q.axis, at // q.block)

    def rows(start: int, stop: int) -> Tensor:
        part = integer_rows(values, ints, start, stop)
        scale = spread(q.scale.float(), start, stop)
        if part.dtype.is_floating_point:
            return part.float() * scale
        return (part.int() - spread(q.zero_point.int(), start, stop)).float() * scale

    return rows


def integer_rows(values: Tensor, ints: Stored, start: int, stop: int) -> Tensor:
    """Rows of what :meth:`Stored.read` gave, one value per element; ``start`` is a multiple of :data:`ROW_STEP`."""
    if TYPES[ints.code].bits >= 8:
        return values[start:stop] if ints.shape else values
    shape = (stop - start, *ints.shape[1:])
    per_byte = 8 // TYPES[ints.code].bits
    first, size = start * math.prod(shape[1:]) // per_byte, -(-math.prod(shape) // per_byte)
    return unpack_integers(values[first : first + size], ints.code, shape)
