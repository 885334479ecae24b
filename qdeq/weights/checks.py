"""What an argument must be: weights, scales, ``out`` tensors. Operators only stay memory safe; these find the words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.weights.integer_types import FLOAT_QPARAMS, INTEGER_TYPES, PER_CHANNEL, PER_TENSOR
from qdeq.weights.native import OUT_DTYPES
from qdeq.words import dtype_name

__all__ = ["check_dtype", "check_out", "check_scales", "check_weight", "describe"]


def describe(x: object) -> str:
    """Name a value in an error message: a tensor by what it is, anything else by its type."""
    if isinstance(x, Tensor):
        return f"a {dtype_name(x.dtype)} tensor of shape {tuple(x.shape)} on {x.device}"
    return f"{type(x).__module__}.{type(x).__qualname__}"


def check_scales(where: str, scale: Tensor) -> None:
    """Refuse scales that are NaN, infinite, zero or negative, or that become so in float32. Denormals are fine.

    Args:
        where: what the message calls the scales' owner.
        scale: float64 or float32, 0-d or 1-d.

    Raises:
        QdeqValueError: names the first channel that is bad and how many there are.

    """
    narrow = scale.reshape(-1).float()
    bad = ~((narrow > 0) & (narrow <= torch.finfo(torch.float32).max))
    if not bool(bad.any()):
        return
    channel = int(bad.nonzero()[0])
    value = float(scale.reshape(-1)[channel])
    got = (
        f"{value!r}" if scale.dim() == 0 else f"{value!r} in channel {channel} ({int(bad.sum())} bad of {bad.numel()})"
    )
    remedy = "The weight is damaged or was never calibrated; allow_bad_scales=True gives what torch computes."
    raise QdeqValueError(expected(where, "scales that are positive and finite in float32", got, remedy))


def check_dtype(where: str, dtype: object) -> None:
    """Refuse a result's dtype that the kernels do not write."""
    if dtype not in OUT_DTYPES:
        remedy = "Convert the float32 result with .to(dtype)."
        raise QdeqValueError(expected(f"{where}: dtype", f"one of {list(OUT_DTYPES)}", repr(dtype), remedy))


def _may_overlap_itself(x: Tensor) -> bool:
    reach = 0
    for stride, size in sorted((st, n) for st, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def _byte_range(x: Tensor) -> tuple[int, int]:
    if x.numel() == 0:
        return x.data_ptr(), x.data_ptr()
    last = sum((n - 1) * st for n, st in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def check_out(
    where: str, out: object, shape: Iterable[int], dtype: torch.dtype, sources: Iterable[Tensor] = ()
) -> None:
    """Refuse an ``out`` that cannot take the result.

    Args:
        where: the function that was called.
        out: what the caller passed.
        shape: of the result.
        dtype: asked for.
        sources: plain tensors whose memory ``out`` may not share.

    Raises:
        QdeqTypeError: not a tensor.
        QdeqValueError: shape, dtype, device, layout, overlap, a negated view, or it requires grad.

    """
    name = f"{where}: out"
    if not isinstance(out, Tensor):
        raise QdeqTypeError(expected(name, "a tensor", describe(out), "Pass torch.empty(shape, dtype=dtype)."))
    if out.is_quantized or out.layout != torch.strided or out.device.type != "cpu":
        remedy = "Dequantize on the CPU, then move the result."
        raise QdeqValueError(expected(name, "a dense tensor on cpu", describe(out), remedy))
    if tuple(out.shape) != tuple(shape):
        remedy = "out is never resized."
        raise QdeqValueError(expected(name, f"shape {tuple(shape)}", str(tuple(out.shape)), remedy))
    if out.dtype != dtype:
        remedy = "Pass dtype=out.dtype, or an out of the dtype asked for."
        raise QdeqValueError(expected(name, f"dtype {dtype}", str(out.dtype), remedy))
    if out.requires_grad:
        remedy = "Pass out.detach(), or out.data of a parameter."
        raise QdeqValueError(expected(name, "a tensor that does not require grad", "one that does", remedy))
    if out.is_neg():
        remedy = "Pass out.resolve_neg(), or another tensor."
        raise QdeqValueError(expected(name, "memory that holds the values themselves", "a negated view", remedy))
    if _may_overlap_itself(out):
        remedy = "Each element needs its own memory: pass a tensor that was not expanded."
        raise QdeqValueError(expected(name, "elements that do not overlap", f"strides {out.stride()}", remedy))
    first, last = _byte_range(out)
    for source in sources:
        begin, end = _byte_range(source)
        if first < end and begin < last:
            raise QdeqValueError(expected(name, "memory of its own", "the source's memory", "Pass another tensor."))


def check_weight(weight: Any) -> None:
    """Refuse fields of a weight that are of the wrong type or contradict one another; scales may be anything.

    Raises:
        QdeqTypeError: a field of the wrong Python type.
        QdeqValueError: any other fault.

    """
    _check_types(weight)
    _check_integers(weight)
    _check_qparams(weight)


def _check_types(w: Any) -> None:
    for name in ("int_repr", "scale", "zero_point"):
        value = getattr(w, name)
        if not isinstance(value, Tensor):
            raise QdeqTypeError(expected(f"QuantizedWeight.{name}", "a tensor", describe(value), "Pass a tensor."))
        if value.is_quantized or value.device.type != "cpu":
            remedy = "Use QuantizedWeight.from_tensor for quantized tensors and .cpu() for other devices."
            raise QdeqValueError(expected(f"QuantizedWeight.{name}", "a plain CPU tensor", describe(value), remedy))
    if w.dtype not in INTEGER_TYPES:
        remedy = "Use torch's name, without 'torch.'."
        raise QdeqValueError(expected("QuantizedWeight.dtype", f"one of {list(INTEGER_TYPES)}", repr(w.dtype), remedy))
    if w.qscheme not in (PER_TENSOR, PER_CHANNEL, FLOAT_QPARAMS):
        remedy = "Symmetric schemes are affine ones with a zero point of 0."
        what = f"one of {[PER_TENSOR, PER_CHANNEL, FLOAT_QPARAMS]}"
        raise QdeqValueError(expected("QuantizedWeight.qscheme", what, repr(w.qscheme), remedy))
    if not isinstance(w.shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in w.shape):
        raise QdeqTypeError(
            expected("QuantizedWeight.shape", "a tuple of sizes", repr(w.shape), "Pass tuple(tensor.shape).")
        )


def _check_integers(w: Any) -> None:
    kind = w.integers
    where = "QuantizedWeight.int_repr"
    if w.int_repr.dtype != kind.storage:
        remedy = f"{w.dtype} values are stored as {kind.storage}."
        raise QdeqValueError(expected(where, f"dtype {kind.storage}", str(w.int_repr.dtype), remedy))
    if kind.bits >= 8:
        if tuple(w.int_repr.shape) != w.shape:
            remedy = "shape is that of the integers, unless they are packed."
            raise QdeqValueError(expected(where, f"shape {w.shape}", str(tuple(w.int_repr.shape)), remedy))
        return
    num_bytes = kind.bytes_for(math.prod(w.shape))
    if w.int_repr.dim() != 1 or not w.int_repr.is_contiguous() or w.int_repr.numel() != num_bytes:
        got = f"shape {tuple(w.int_repr.shape)}, strides {w.int_repr.stride()}"
        remedy = f"Pack {8 // kind.bits} values a byte, low bits first, in the order of a contiguous tensor."
        raise QdeqValueError(expected(where, f"{num_bytes} contiguous bytes for shape {w.shape}", got, remedy))


def _check_qparams(w: Any) -> None:
    float_qparams = w.qscheme == FLOAT_QPARAMS
    zero_dtype = torch.float32 if float_qparams else torch.int64
    for name, tensor, dtype in (("scale", w.scale, torch.float64), ("zero_point", w.zero_point, zero_dtype)):
        if tensor.dtype != dtype:
            got, remedy = str(tensor.dtype), f"Convert it with .to({dtype})."
            raise QdeqValueError(expected(f"QuantizedWeight.{name}", f"dtype {dtype} for {w.qscheme}", got, remedy))
    if w.qscheme == PER_TENSOR:
        wanted: tuple[int, ...] = ()
        if w.axis is not None:
            remedy = "A per tensor weight has no channel axis."
            raise QdeqValueError(expected("QuantizedWeight.axis", "None", repr(w.axis), remedy))
    else:
        if not isinstance(w.axis, int) or not 0 <= w.axis < len(w.shape):
            what = f"an int from 0 to {len(w.shape) - 1}" if w.shape else "a shape with at least one dimension"
            remedy = "axis is the dimension of the channels, counted from the front."
            raise QdeqValueError(expected("QuantizedWeight.axis", what, repr(w.axis), remedy))
        wanted = (w.shape[w.axis],)
    for name, tensor in (("scale", w.scale), ("zero_point", w.zero_point)):
        if tuple(tensor.shape) != wanted:
            remedy = "There is one value per channel, or a 0-d tensor per tensor."
            what = f"shape {wanted} for {w.qscheme}"
            raise QdeqValueError(expected(f"QuantizedWeight.{name}", what, str(tuple(tensor.shape)), remedy))
        if not tensor.is_contiguous():
            remedy = "Call .contiguous() on it."
            raise QdeqValueError(
                expected(f"QuantizedWeight.{name}", "contiguous", f"strides {tensor.stride()}", remedy)
            )
    if not float_qparams:
        _check_zero_points("QuantizedWeight.zero_point", w.zero_point, w.dtype)


def _check_zero_points(where: str, zero_point: Tensor, dtype: str) -> None:
    """Refuse int64 zero points outside the range of ``dtype``'s storage, as torch does when it dequantizes."""
    info = torch.iinfo(INTEGER_TYPES[dtype].storage)
    outside = ((zero_point < info.min) | (zero_point > info.max)).reshape(-1)
    if bool(outside.any()):
        channel = int(outside.nonzero()[0])
        value = int(zero_point.reshape(-1)[channel])
        what = f"zero points from {info.min} to {info.max} for {dtype}"
        raise QdeqValueError(expected(where, what, f"{value} (channel {channel})", "The qparams are damaged."))
