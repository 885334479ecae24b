"""Several weights as one, below each other, without losing an integer where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.integer_types import PER_CHANNEL, PER_TENSOR
from qdeq.weights.weight import QuantizedWeight

__all__ = ["stack_weights", "stacked_kind"]

_BYTE_TYPES = ("qint8", "quint8")


def stacked_kind(parts: Sequence[Any]) -> tuple[str, str | None, int | None]:
    """Dtype, scheme and axis of what :func:`stack_weights` returns, by torch's names, before it is read.

    Args:
        parts: things with ``dtype``, ``qscheme`` and ``axis``, as :class:`~qdeq.QuantizedWeight` has them.

    """
    if _stays_quantized(parts):
        return parts[0].dtype, PER_CHANNEL, 0
    dtypes = {part.dtype if part.qscheme is None else "float32" for part in parts}
    return dtypes.pop() if len(dtypes) == 1 else "float32", None, None


def _stays_quantized(parts: Sequence[Any]) -> bool:
    """Whether weights can be stacked as integers: of one 8-bit dtype, with one scale or one for each row."""
    kinds = {getattr(part, "qscheme", None) for part in parts}
    # Wider integers wrap per tensor, and do not per channel: checked in float, they would differ.
    one_type = len({part.dtype for part in parts}) == 1 and parts[0].dtype in _BYTE_TYPES
    return one_type and kinds <= {PER_TENSOR, PER_CHANNEL} and all(part.axis in (None, 0) for part in parts)


def stack_weights(where: str, parts: Sequence[QuantizedWeight | Tensor]) -> QuantizedWeight | Tensor:
    """Return the rows of all parts, in their order.

    A scale for a whole part becomes one for each of its rows, rounded to float32, as its dequantization rounds it: the
    float values are the same, bit for bit.

    Args:
        where: for errors.
        parts: quantized weights or float tensors of equal row size.

    Returns:
        A quantized weight per channel if all parts are of one 8-bit dtype with scales for rows, else a float tensor.

    """
    if not _stays_quantized(parts):
        floats = [dequantize_source(p, where=where) if isinstance(p, QuantizedWeight) else p.detach() for p in parts]
        if any(not part.is_floating_point() for part in floats):
            got = ", ".join(str(part.dtype) for part in floats)
            raise QdeqValueError(expected(where, "floating point tensors", got, "The checkpoint is damaged."))
        return torch.cat(floats if len({part.dtype for part in floats}) == 1 else [part.float() for part in floats])
    weights = [part for part in parts if isinstance(part, QuantizedWeight)]
    rows = [part.shape[0] for part in weights]
    scales = [
        _per_row(w.scale.float().double() if w.axis is None else w.scale, n) for w, n in zip(weights, rows, strict=True)
    ]
    zeros = [_per_row(w.zero_point, n) for w, n in zip(weights, rows, strict=True)]
    integers = torch.cat([part.int_repr for part in weights])
    shape = (sum(rows), *weights[0].shape[1:])
    return QuantizedWeight(integers, torch.cat(scales), torch.cat(zeros), 0, PER_CHANNEL, weights[0].dtype, shape)


def _per_row(values: Tensor, rows: int) -> Tensor:
    return values.expand(rows) if values.dim() == 0 else values
