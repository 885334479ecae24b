"""Several weights as one, below each other, without losing an integer where that can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.dequant import dequantize_source
from qdeq.weight import PER_CHANNEL, PER_TENSOR, QuantizedWeight

__all__ = ["stack_weights", "stays_quantized"]

_BYTE_TYPES = ("qint8", "quint8")


def stays_quantized(parts: Sequence[Any]) -> bool:
    """Whether weights can be stacked as integers: of one 8-bit dtype, with one scale or one for each row.

    Args:
        parts: things with ``dtype``, ``qscheme`` and ``axis``, as :class:`~qdeq.QuantizedWeight` has them.

    """
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
        A quantized weight per channel if :func:`stays_quantized`, else a float tensor.

    """
    if not stays_quantized(parts):
        floats = [dequantize_source(p, where=where) if isinstance(p, QuantizedWeight) else p.detach() for p in parts]
        return torch.cat(floats)
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
