"""dequantize() and unpack(): one entry for quantized tensors, packed weights and QuantizedWeight."""

from __future__ import annotations

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, expected
from qdeq.weights import native as ops
from qdeq.weights import packed
from qdeq.weights.block_weight import BlockWeight
from qdeq.weights.checks import check_out, describe
from qdeq.weights.weight import QuantizedWeight, dequantize_weight, explain_refusal, weight_from_tensor

__all__ = ["dequantize", "dequantize_source", "unpack"]

# A torch that has dropped these attributes must still import this: files are read without them.
_PER_TENSOR = tuple(getattr(torch, name, None) for name in ("per_tensor_affine", "per_tensor_symmetric"))


def dequantize(
    x: object,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
) -> Tensor:
    """Return the float tensor that a quantized one stands for, bit for bit as torch's ``dequantize()`` on CPU.

    Args:
        x: a quantized tensor (qint8, quint8, qint32, quint4x2, quint2x4; per tensor or per channel), a packed weight
            (the ScriptObject of a quantized Linear or Conv), a :class:`qdeq.QuantizedWeight` or a
            :class:`qdeq.BlockWeight`. On the CPU.
        out: takes the result and is returned: a CPU tensor of x's shape and of ``dtype``, any strides that do not
            overlap, not sharing memory with ``x`` and not requiring grad.
        dtype: torch.float32, or torch.bfloat16 or torch.float16: the exact float32 value rounded to nearest even.
        allow_bad_scales: compute with scales that are NaN, infinite, zero or negative (in float32), as torch does,
            instead of refusing them.

    Returns:
        ``out``, or a fresh tensor with the strides that ``x.dequantize()`` would have: channels_last if ``x`` is,
        otherwise contiguous. A packed weight's are those of ``unpack()[0].dequantize()``.

    Raises:
        QdeqTypeError: ``x`` is nothing that can be dequantized, or ``out`` is no tensor.
        QdeqValueError: a bad scale, an ``out`` that cannot take the result, an unknown ``dtype``, another device.

    """
    if dtype is torch.float32 and not torch.compiler.is_compiling():
        plain = ops.dequantize_direct(x, out)
        if plain is not None:
            return plain
    return dequantize_source(x, where="dequantize", out=out, dtype=dtype, allow_bad_scales=allow_bad_scales)


def dequantize_source(
    x: object,
    *,
    where: str,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
) -> Tensor:
    """:func:`dequantize` with the name that errors begin with: an argument, a dotted module path, a file and key."""
    if isinstance(x, Tensor):
        if x.is_quantized and x.device.type == "cpu" and dtype in ops.OUT_DTYPES:
            return _dequantize_tensor(x, where, out, dtype, allow_bad_scales)
    elif isinstance(x, torch.ScriptObject):
        return packed.dequantize_packed(x, where=where, out=out, dtype=dtype, allow_bad_scales=allow_bad_scales)
    elif isinstance(x, BlockWeight):
        return x.dequantize(out=out, dtype=dtype)
    weight = unpack_source(x, where=where)
    return dequantize_weight(weight, where=where, out=out, dtype=dtype, allow_bad_scales=allow_bad_scales)


def _dequantize_tensor(q: Tensor, where: str, out: Tensor | None, dtype: torch.dtype, allow_bad_scales: bool) -> Tensor:
    if out is not None and (not isinstance(out, Tensor) or out.requires_grad or out.device.type != "cpu"):
        check_out(where, out, q.shape, dtype)
    try:
        return ops.dequantize_quantized(q, q.qscheme() not in _PER_TENSOR, dtype, allow_bad_scales, out)
    except RuntimeError as error:
        explain_refusal(error, where, unpack_source(q, where=where), out, dtype, allow_bad_scales)


def unpack(x: object) -> QuantizedWeight:
    """Return the integers, scales and zero points of a quantized tensor, a packed weight or a QuantizedWeight.

    A tensor's integers are not copied: see :meth:`qdeq.QuantizedWeight.from_tensor`.

    Raises:
        QdeqTypeError: ``x`` is none of these.
        QdeqValueError: it is on another device, or a view of sub-byte values.

    """
    return unpack_source(x, where="unpack")


def unpack_source(x: object, *, where: str) -> QuantizedWeight:
    """:func:`unpack` with the name that errors begin with."""
    if isinstance(x, QuantizedWeight):
        return x
    if isinstance(x, Tensor):
        return weight_from_tensor(x, where)
    if packed.is_packed_weight(x):
        return packed.unpack_packed(x, where=where)
    what = "a quantized tensor, a packed weight or a QuantizedWeight"
    raise QdeqTypeError(expected(where, what, describe(x), "For a whole model use qdeq.dequantize_model."))
