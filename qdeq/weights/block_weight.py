"""BlockWeight: codes of a few bits and a grid of scales, as checkpoints are released; the float weight they stand for.

The formula: ``P = f32(value(code) * f32(scale))``, one product in float32, never fused, then rounded once to the dtype
that is asked for. It is what the formats' own references compute in float32 (compressed-tensors' ``dequantize``,
DeepSeek's ``weight_dequant``); where a reference rounds to another type on its way, ``docs/released.md`` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.weights import native as ops
from qdeq.weights.checks import check_dtype, check_out, describe
from qdeq.words import dtype_name, shape_text

__all__ = ["CODE_DTYPES", "SCALE_DTYPES", "BlockWeight", "block_reference", "codes_at", "grid_shape", "scale_range"]

CODE_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
_BY_NAME = {dtype_name(dtype): dtype for dtype in CODE_DTYPES}
_WHERE = "BlockWeight"


@dataclass(frozen=True, eq=False)
class BlockWeight:
    """A weight whose codes share scales by blocks. Checked once, when it is made.

    Attributes:
        codes: uint8, contiguous, on the CPU: the codes as they are stored, one in a byte, of ``shape``.
        values: what a code stands for, by torch's name of the dtype whose bits it is: "float8_e4m3fn",
            "float8_e5m2", "float8_e4m3fnuz" or "float8_e5m2fnuz". Codes of a NaN are legal and give NaN.
        scale: float32, bfloat16, float16 or float8_e8m0fnu, the grid of scales: ``grid_shape(shape, block)``. Zero,
            subnormal and negative scales are legal.
        block: one size for each dimension, 0 for the whole of it: entry ``i`` of the grid belongs to indices
            ``i * block`` to ``(i + 1) * block - 1``, and the last block of a dimension may be cut.
        shape: of the weight.
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
    native: torch.dtype = torch.bfloat16
    origin: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        _check(self)

    @property
    def dtype(self) -> str:
        """Torch's name of the dtype of the codes."""
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
            matrices = _as_matrices(self.shape)
            steps = [step or size for step, size in zip(self.block, self.shape, strict=True)]
            ops.dequantize_codes(
                self.codes.view(matrices),
                _values(self.values),
                _grid_of_matrices(scale, self.shape, self.block),
                block=[1, 1, *steps][-2:],
                out=target.view(matrices),
            )
        return target if out is None or target is out else out.copy_(target)

    def float_scale(self) -> Tensor:
        """Return the grid of scales in float32, checked.

        Raises:
            QdeqValueError: one is NaN or infinite.

        """
        scale = self.scale.float()
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
        return facts | {"scale_min": low, "scale_max": high}


def scale_range(scale: Tensor) -> tuple[float | None, float | None]:
    """Smallest and largest of a grid of scales; None for an empty one."""
    if scale.numel() == 0:
        return None, None
    wide = scale.float()
    return float(wide.min()), float(wide.max())


def grid_shape(shape: Sequence[int], block: Sequence[int]) -> tuple[int, ...]:
    """How many blocks there are along each dimension; 0 in ``block`` stands for the whole dimension."""
    return tuple(-(-size // step) if step else 1 for size, step in zip(shape, block, strict=True))


def codes_at(weight: BlockWeight, index: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
    """Return the codes at ``index``, and the part of the grid that belongs to them.

    Along each dimension, ``index`` begins where a block begins, or lies within one block.
    """
    grid = tuple(
        slice(None) if step == 0 else slice(part.start // step, -(-part.stop // step))
        for part, step in zip(index, weight.block, strict=False)
    )
    return weight.codes[index], weight.scale[grid]


def block_reference(weight: BlockWeight, dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute the formula at the head of this file in plain torch: slow, for tests and for reading."""
    scale = weight.scale.float()
    for dim, (size, step) in enumerate(zip(weight.shape, weight.block, strict=True)):
        scale = scale.repeat_interleave(step or size, dim).narrow(dim, 0, size)
    return (weight.codes.view(_BY_NAME[weight.values]).float() * scale).to(dtype)


def _values(name: str) -> Tensor:
    """The values of codes 0 to 255 in float32. What a NaN looks like is one pattern, so that all kernels agree."""
    table = torch.arange(256, dtype=torch.uint8).view(_BY_NAME[name]).float()
    return torch.where(table.isnan(), torch.tensor(math.nan), table)


def _as_matrices(shape: Sequence[int]) -> tuple[int, int, int]:
    rows, cols = (1, 1, *shape)[-2:]
    return math.prod(shape[:-2]), rows, cols


def _grid_of_matrices(scale: Tensor, shape: tuple[int, ...], block: tuple[int, ...]) -> Tensor:
    """The grid with a part of its own for each matrix, whatever blocks the leading dimensions have."""
    for dim in range(len(shape) - 2):
        if scale.shape[dim] != shape[dim]:
            scale = scale.repeat_interleave(block[dim] or shape[dim], dim).narrow(dim, 0, shape[dim])
    rows, cols = (1, 1, *scale.shape)[-2:]
    return scale.reshape(math.prod(shape[:-2]), rows, cols).contiguous()


def _check(w: BlockWeight) -> None:
    for name in ("codes", "scale"):
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
    if w.values not in _BY_NAME:
        refuse(f"{where}: values", f"one of {list(_BY_NAME)}", repr(w.values), "Use torch's name, without 'torch.'.")
    if w.codes.dtype != torch.uint8 or tuple(w.codes.shape) != w.shape or not w.codes.is_contiguous():
        what = f"contiguous uint8 codes of shape {shape_text(w.shape)}"
        refuse(f"{where}: codes", what, describe(w.codes), "View the tensor as torch.uint8.")
    if len(w.block) != len(w.shape):
        refuse(f"{where}: block", f"{len(w.shape)} sizes", repr(w.block), "Name one for each dimension, 0 for whole.")
    if w.scale.dtype not in SCALE_DTYPES:
        what = f"scales of {[dtype_name(dtype) for dtype in SCALE_DTYPES]}"
        refuse(f"{where}: scale", what, dtype_name(w.scale.dtype), "Other types of scales are not known.")
    grid = grid_shape(w.shape, w.block)
    if tuple(w.scale.shape) != grid:
        what = f"a grid of shape {grid} for blocks of {w.block} in {w.shape}"
        refuse(f"{where}: scale", what, str(tuple(w.scale.shape)), "The last block of a dimension may be cut.")
