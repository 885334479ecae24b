"""What an argument must be: weights, scales, ``out`` tensors. Operators only stay memory safe; these find the words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, expected, refuse
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
    """Refuse scales (0-d or 1-d) that are NaN, infinite, zero or negative, or become so in float32. Denormals are fine.

    The message names the first channel that is bad and how many there are.
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
    refuse(where, "scales that are positive and finite in float32", got, remedy)


def check_dtype(where: str, dtype: object) -> None:
    """Refuse a result's dtype that the kernels do not write."""
    if dtype not in OUT_DTYPES:
        what, remedy = f"one of {list(OUT_DTYPES)}", "Convert the float32 result with .to(dtype)."
        refuse(f"{where}: dtype", what, repr(dtype), remedy)


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

    ``shape`` and ``dtype`` are the result's; ``out`` may not share memory with ``sources``, plain tensors.
    """
    name = f"{where}: out"
    if not isinstance(out, Tensor):
        raise QdeqTypeError(expected(name, "a tensor", describe(out), "Pass torch.empty(shape, dtype=dtype)."))
    if out.is_quantized or out.layout != torch.strided or out.device.type != "cpu":
        refuse(name, "a dense tensor on cpu", describe(out), "Dequantize on the CPU, then move the result.")
    if tuple(out.shape) != tuple(shape):
        refuse(name, f"shape {tuple(shape)}", str(tuple(out.shape)), "out is never resized.")
    if out.dtype != dtype:
        refuse(name, f"dtype {dtype}", str(out.dtype), "Pass dtype=out.dtype, or an out of the dtype asked for.")
    if out.requires_grad:
        remedy = "Pass out.detach(), or out.data of a parameter."
        refuse(name, "a tensor that does not require grad", "one that does", remedy)
    if out.is_neg():
        remedy = "Pass out.resolve_neg(), or another tensor."
        refuse(name, "memory that holds the values themselves", "a negated view", remedy)
    if _may_overlap_itself(out):
        remedy = "Each element needs its own memory: pass a tensor that was not expanded."
        refuse(name, "elements that do not overlap", f"strides {out.stride()}", remedy)
    first, last = _byte_range(out)
    for source in sources:
        begin, end = _byte_range(source)
        if first < end and begin < last:
            refuse(name, "memory of its own", "the source's memory", "Pass another tensor.")


def check_weight(weight: Any) -> None:
    """Refuse fields of a weight that are of the wrong type or contradict one another; scales may be anything."""
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
            refuse(f"QuantizedWeight.{name}", "a plain CPU tensor", describe(value), remedy)
    if w.dtype not in INTEGER_TYPES:
        what, remedy = f"one of {list(INTEGER_TYPES)}", "Use torch's name, without 'torch.'."
        refuse("QuantizedWeight.dtype", what, repr(w.dtype), remedy)
    schemes = [PER_TENSOR, PER_CHANNEL, FLOAT_QPARAMS]
    if w.qscheme not in schemes:
        remedy = "Symmetric schemes are affine ones with a zero point of 0."
        refuse("QuantizedWeight.qscheme", f"one of {schemes}", repr(w.qscheme), remedy)
    if not isinstance(w.shape, tuple) or not all(isinstance(n, int) and n >= 0 for n in w.shape):
        remedy = "Pass tuple(tensor.shape)."
        raise QdeqTypeError(expected("QuantizedWeight.shape", "a tuple of sizes", repr(w.shape), remedy))


def _check_integers(w: Any) -> None:
    kind = w.integers
    where = "QuantizedWeight.int_repr"
    if w.int_repr.dtype != kind.storage:
        remedy = f"{w.dtype} values are stored as {kind.storage}."
        refuse(where, f"dtype {kind.storage}", str(w.int_repr.dtype), remedy)
    if kind.bits >= 8:
        if tuple(w.int_repr.shape) != w.shape:
            remedy = "shape is that of the integers, unless they are packed."
            refuse(where, f"shape {w.shape}", str(tuple(w.int_repr.shape)), remedy)
        return
    num_bytes = kind.bytes_for(math.prod(w.shape))
    if w.int_repr.dim() != 1 or not w.int_repr.is_contiguous() or w.int_repr.numel() != num_bytes:
        got = f"shape {tuple(w.int_repr.shape)}, strides {w.int_repr.stride()}"
        remedy = f"Pack {8 // kind.bits} values a byte, low bits first, in the order of a contiguous tensor."
        refuse(where, f"{num_bytes} contiguous bytes for shape {w.shape}", got, remedy)


def _check_qparams(w: Any) -> None:
    float_qparams = w.qscheme == FLOAT_QPARAMS
    zero_dtype = torch.float32 if float_qparams else torch.int64
    for name, tensor, dtype in (("scale", w.scale, torch.float64), ("zero_point", w.zero_point, zero_dtype)):
        if tensor.dtype != dtype:
            what, remedy = f"dtype {dtype} for {w.qscheme}", f"Convert it with .to({dtype})."
            refuse(f"QuantizedWeight.{name}", what, str(tensor.dtype), remedy)
    if w.qscheme == PER_TENSOR:
        wanted: tuple[int, ...] = ()
        if w.axis is not None:
            refuse("QuantizedWeight.axis", "None", repr(w.axis), "A per tensor weight has no channel axis.")
    else:
        if not isinstance(w.axis, int) or not 0 <= w.axis < len(w.shape):
            what = f"an int from 0 to {len(w.shape) - 1}" if w.shape else "a shape with at least one dimension"
            remedy = "axis is the dimension of the channels, counted from the front."
            refuse("QuantizedWeight.axis", what, repr(w.axis), remedy)
        wanted = (w.shape[w.axis],)
    for name, tensor in (("scale", w.scale), ("zero_point", w.zero_point)):
        if tuple(tensor.shape) != wanted:
            remedy = "There is one value per channel, or a 0-d tensor per tensor."
            refuse(f"QuantizedWeight.{name}", f"shape {wanted} for {w.qscheme}", str(tuple(tensor.shape)), remedy)
        if not tensor.is_contiguous():
            got = f"strides {tensor.stride()}"
            refuse(f"QuantizedWeight.{name}", "contiguous", got, "Call .contiguous() on it.")
    if float_qparams:
        return
    info = torch.iinfo(w.integers.storage)
    outside = ((w.zero_point < info.min) | (w.zero_point > info.max)).reshape(-1)
    if bool(outside.any()):  # torch refuses them, too, when it dequantizes
        channel = int(outside.nonzero()[0])
        what = f"zero points from {info.min} to {info.max} for {w.dtype}"
        got = f"{int(w.zero_point.reshape(-1)[channel])} (channel {channel})"
        refuse("QuantizedWeight.zero_point", what, got, "The qparams are damaged.")
