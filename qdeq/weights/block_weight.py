"""BlockWeight: codes of a few bits and a grid of scales, as checkpoints are released; the float weight they stand for.

The formula, every step rounded to float32 and none fused, then rounded once to the dtype that is asked for:

* ``P = (value(code) - zero) * S``, without a zero point ``value(code) * S``;
* ``S = scale``; with a second factor ``scale * factor``, or ``scale / factor`` where the format states the inverse.

It is what the formats' own references compute in float32 (compressed-tensors' ``dequantize``, DeepSeek's
``weight_dequant``, ModelOpt's tables); where a reference rounds on its way, ``docs/released.md`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.weights import native as ops
from qdeq.weights.checks import check_dtype, check_out, describe
from qdeq.weights.codes import KINDS, CodeKind, unpack_codes
from qdeq.words import dtype_name, shape_text

__all__ = ["SCALE_DTYPES", "BlockWeight", "block_reference", "grid_shape", "scale_range", "take_part"]

SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu, torch.float8_e4m3fn)
_ZERO_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)
_WHERE = "BlockWeight"


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A weight whose codes share scales by blocks. Checked once, when it is made.

    Attributes:
        codes: uint8, contiguous, on the CPU: rows of bytes as they are stored, ``shape`` with bytes for values in its
            last dimension. In a row codes lie low bits first, without gaps; bytes behind the last code are padding.
        values: what a code stands for, a name in :data:`qdeq.weights.codes.KINDS`: "float8_e4m3fn", "float4_e2m1",
            "int8", "int4_excess", ... Codes of a NaN are legal and give NaN.
        scale: float32, bfloat16, float16, float8_e8m0fnu or float8_e4m3fn, the grid of scales: ``grid_shape(shape,
            block)``. Zero, subnormal and negative scales are legal.
        block: one size for each dimension, 0 for the whole of it: entry ``i`` of the grid belongs to indices
            ``i * block`` to ``(i + 1) * block - 1``, and the last block of a dimension may be cut.
        shape: of the weight.
        zero: int8, uint8, int16 or int32 of the scale's shape, subtracted from values; None for none.
        factor: float32, a second factor of every scale: 0-d, or one for each index of the leading dimensions (all but
            the last two, of size 1 there); None for none.
        divides: the factor is a divisor.
        native: the dtype that the format's own reference gives.
        origin: file and key that it was read from, for errors; empty where it comes from no file.

    Raises:
        QdeqTypeError: a field is of the wrong Python type.
        QdeqValueError: a field contradicts another. Scales are judged by :meth:`dequantize`.

    """

    codes: Tensor
    values: str
    scale: Tensor
    block: tuple[int, ...]
    shape: tuple[int, ...]
    zero: Tensor | None = None
    factor: Tensor | None = None
    divides: bool = False
    native: torch.dtype = torch.bfloat16
    origin: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def kind(self) -> CodeKind:
        """Width and values of the codes."""
        return KINDS[self.values]

    @property
    def dtype(self) -> str:
        """What the codes stand for, as reports call it."""
        return self.values

    @property
    def qscheme(self) -> str:
        """``per_block``, as reports call it."""
        return "per_block"

    @property
    def axis(self) -> None:
        """None: blocks lie along several dimensions."""
        return

    def dequantize(self, *, out: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the float tensor of ``shape``: the float32 product, rounded once to ``dtype``, to nearest even.

        Args:
            out: takes the result and is returned: a CPU tensor of ``shape`` and ``dtype``, any strides that do not
                overlap, not sharing memory with the codes and not requiring grad.
            dtype: torch.float32, torch.bfloat16 or torch.float16.

        Returns:
            ``out``, or a fresh contiguous tensor.

        Raises:
            QdeqTypeError: ``out`` is no tensor.
            QdeqValueError: a scale that is NaN or infinite, an ``out`` that cannot take the result, another ``dtype``.

        """
        where = self.origin or f"{_WHERE}.dequantize"
        check_dtype(where, dtype)
        if out is not None:
            check_out(where, out, self.shape, dtype, (self.codes, self.scale))
        scale = self.float_scale()
        target = ops.empty(self.shape, dtype) if out is None or not out.is_contiguous() else out
        if target.numel():
            matrices, rows, cols = math.prod(self.shape[:-2]), *(1, 1, *self.shape)[-2:]
            steps = [step or size for step, size in zip(self.block, self.shape, strict=True)]
            zero = torch.empty(0) if self.zero is None else self._of_matrices(self.zero.float())
            ops.dequantize_codes(
                self.codes.view(matrices, rows, -1),
                self.kind.values,
                self._of_matrices(scale),
                zero,
                block=[1, 1, *steps][-2:],
                out=target.view(matrices, rows, cols),
            )
        return target if out is None or target is out else out.copy_(target)

    def float_scale(self) -> Tensor:
        """Return the grid of scales in float32, with the second factor in it, checked.

        Raises:
            QdeqValueError: one is NaN or infinite.

        """
        scale = self.scale.float()
        if self.factor is not None:
            scale = scale / self.factor if self.divides else scale * self.factor
        bad = ~scale.isfinite()
        if bool(bad.any()):
            at = tuple(bad.nonzero()[0].tolist())
            got = f"{float(scale[at])} at {at} ({int(bad.sum())} bad of {bad.numel()})"
            refuse(self.origin or _WHERE, "finite scales", got, "The weight is damaged: get a fresh copy.")
        return scale

    def describe(self) -> dict[str, Any]:
        """Return what reports say: dtype and shape, block, the scales' dtype and range, the native dtype."""
        facts: dict[str, Any] = {"dtype": self.values, "shape": self.shape, "block": self.block}
        facts |= {"scale_dtype": dtype_name(self.scale.dtype), "native": dtype_name(self.native)}
        low, high = scale_range(self.scale)
        return facts | {"scale_min": low, "scale_max": high, "zero_points": self.zero is not None}

    def _of_matrices(self, grid: Tensor) -> Tensor:
        """A grid with a part of its own for each matrix, whatever blocks the leading dimensions have."""
        for dim in range(len(self.shape) - 2):
            if grid.shape[dim] != self.shape[dim]:
                steps = self.block[dim] or self.shape[dim]
                grid = grid.repeat_interleave(steps, dim).narrow(dim, 0, self.shape[dim])
        rows, cols = (1, 1, *grid.shape)[-2:]
        return grid.reshape(math.prod(self.shape[:-2]), rows, cols).contiguous()


def scale_range(scale: Tensor) -> tuple[float | None, float | None]:
    """Smallest and largest of a grid of scales; None for an empty one."""
    if scale.numel() == 0:
        return None, None
    wide = scale.float()
    return float(wide.min()), float(wide.max())


def grid_shape(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """How many blocks there are along each dimension; 0 in ``block`` stands for the whole dimension."""
    return tuple(-(-size // step) if step else 1 for size, step in zip(shape, block, strict=True))


def take_part(weight: BlockWeight, index: tuple[slice, ...], shape: tuple[int, ...]) -> BlockWeight:
    """Return ``weight[index]``, of that ``shape``; ``index`` has one slice for each leading dimension that is cut.

    Along each dimension, ``index`` begins where a block begins, or lies within one block.
    """
    grid = tuple(
        slice(None) if step == 0 else slice(part.start // step, -(-part.stop // step))
        for part, step in zip(index, weight.block, strict=False)
    )
    stored = index
    if len(index) == len(weight.shape) and index:
        bits, last = weight.kind.bits, index[-1]
        stored = (*index[:-1], slice(last.start * bits // 8, -(-last.stop * bits // 8)))
    factor = weight.factor
    if factor is not None and factor.dim():
        factor = factor[index[: factor.dim() - 2]]
    zero = None if weight.zero is None else weight.zero[grid]
    codes, scale = weight.codes[stored], weight.scale[grid]
    return replace(weight, codes=codes, scale=scale, zero=zero, factor=factor, shape=shape)


def block_reference(weight: BlockWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute the formula at the head of this file in plain torch: slow, for tests and for reading."""

    def spread(grid: Tensor) -> Tensor:
        for dim, (size, step) in enumerate(zip(weight.shape, weight.block, strict=True)):
            grid = grid.repeat_interleave(step or size, dim).narrow(dim, 0, size)
        return grid

    rows = weight.codes if weight.shape else weight.codes.reshape(1)
    codes = unpack_codes(rows, weight.kind.bits, (1, *weight.shape)[-1]).reshape(weight.shape)
    values = weight.kind.values[codes.int()]
    if weight.zero is not None:
        values = values - spread(weight.zero.float())
    scale = weight.scale.float()
    if weight.factor is not None:
        scale = scale / weight.factor if weight.divides else scale * weight.factor
    return (values * spread(scale)).to(dtype)


def _check(w: BlockWeight) -> None:
    for name in ("codes", "scale", *(name for name in ("zero", "factor") if getattr(w, name) is not None)):
        value = getattr(w, name)
        if not isinstance(value, Tensor):
            raise QdeqTypeError(expected(f"{_WHERE}.{name}", "a tensor", describe(value), "Pass a tensor."))
        if value.device.type != "cpu" or value.layout != torch.strided:
            refuse(f"{_WHERE}.{name}", "a dense tensor on the CPU", describe(value), "Move it with .cpu().")
    for name in ("shape", "block"):
        sizes = getattr(w, name)
        if not isinstance(sizes, tuple) or not all(isinstance(n, int) and n >= 0 for n in sizes):
            raise QdeqTypeError(expected(f"{_WHERE}.{name}", "a tuple of sizes", repr(sizes), "Pass a tuple of ints."))
    where = w.origin or _WHERE
    if w.values not in KINDS:
        refuse(f"{where}: values", f"one of {list(KINDS)}", repr(w.values), "Other codes are not known.")
    _check_codes(where, w)
    if len(w.block) != len(w.shape):
        refuse(f"{where}: block", f"{len(w.shape)} sizes", repr(w.block), "Name one for each dimension, 0 for whole.")
    if w.shape and w.block[-1] * w.kind.bits % 8 and w.block[-1] < w.shape[-1]:
        refuse(f"{where}: block", f"blocks that begin with a byte of {w.values}", repr(w.block), "It is not read.")
    _check_grids(where, w)


def _check_codes(where: str, w: BlockWeight) -> None:
    *leading, cols = w.shape or (1,)
    right = w.codes.dtype == torch.uint8 and w.codes.is_contiguous() and w.codes.dim() == len(w.shape)
    stored = tuple(w.codes.shape) or (1,)
    if not right or stored[:-1] != tuple(leading) or stored[-1] < w.kind.row_bytes(cols):
        rows = shape_text((*leading, w.kind.row_bytes(cols)) if w.shape else ())
        what = f"contiguous uint8 codes of shape {rows} or longer rows, for {shape_text(w.shape)} values"
        refuse(f"{where}: codes", what, describe(w.codes), "View the tensor as torch.uint8.")
    if w.kind.bits == 8 and stored[-1] != cols:
        refuse(f"{where}: codes", f"{cols} codes in a row", str(stored[-1]), "Codes of 8 bits have no padding.")


def _check_grids(where: str, w: BlockWeight) -> None:
    grid = grid_shape(w.shape, w.block)
    remedy = "The last block of a dimension may be cut."
    for name, dtypes in (("scale", SCALE_DTYPES), ("zero", _ZERO_DTYPES)):
        value = getattr(w, name)
        if value is None:
            continue
        if value.dtype not in dtypes:
            what = f"{name} of {[dtype_name(dtype) for dtype in dtypes]}"
            refuse(f"{where}: {name}", what, dtype_name(value.dtype), "Other types are not known.")
        if tuple(value.shape) != grid:
            what = f"a grid of shape {grid} for blocks of {w.block} in {w.shape}"
            refuse(f"{where}: {name}", what, str(tuple(value.shape)), remedy)
    if w.factor is not None:
        each = (*w.shape[:-2], 1, 1)
        if w.factor.dtype != torch.float32 or tuple(w.factor.shape) not in ((), each):
            refuse(
                f"{where}: factor", f"float32 of shape () or {each}", describe(w.factor), "Convert it with .float()."
            )
