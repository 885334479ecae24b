"""What an argument must be: scales, ``out`` tensors. Operators only stay memory safe; these find the words."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, QdeqValueError, expected

__all__ = ["check_out", "check_scales", "describe"]


def describe(x: object) -> str:
    """Name a value in an error message: a tensor by what it is, anything else by its type."""
    if isinstance(x, Tensor):
        return f"a {str(x.dtype).removeprefix('torch.')} tensor of shape {tuple(x.shape)} on {x.device}"
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
