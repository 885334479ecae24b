"""What a target of a plan comes to: one weight or tensor, read and put together without losing an integer if it can be.

Several weights become one below each other, whose kind is known before they are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import refuse
from qdeq.layers.batch_norm import NormValues, fold_batch_norm
from qdeq.state_dicts.integers import scaled_weight
from qdeq.state_dicts.parts import Fold, Rowwise, Scaled, Stack
from qdeq.state_dicts.rowwise import rowwise_values
from qdeq.weights.block_weight import BlockWeight
from qdeq.weights.blocks import Weight
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.integer_types import PER_CHANNEL, PER_TENSOR
from qdeq.weights.weight import QuantizedWeight, weight_from_tensor

__all__ = ["as_weight", "shape_of", "stack_weights", "stacked_kind", "value_of"]

_BYTE_TYPES = ("qint8", "quint8")


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a weight or tensor; None for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor | QuantizedWeight | BlockWeight) else None


def as_weight(where: str, value: Any) -> Weight:
    """A tensor of torch's quantized dtypes as plain integers; anything else as it is."""
    return weight_from_tensor(value, where) if isinstance(value, Tensor) and value.is_quantized else value


def value_of(where: str, value: Any) -> Weight:
    """The value of a target whose tensors are read: a weight, or several tensors that are one together.

    Raises:
        QdeqValueError: parts that do not fit one another.

    """
    if isinstance(value, Fold):
        return _fold(where, value.part, *value.parts).detach()
    if isinstance(value, Stack):
        return stack_weights(where, [as_weight(where, part) for part in value.parts])
    if isinstance(value, Scaled):
        return scaled_weight(where, *value.parts)
    if isinstance(value, Rowwise):
        return rowwise_values(where, value.table, value.bits)
    return as_weight(where, value)


def _fold(where: str, part: str, weight: Any, bias: Any, *norm: Any) -> Tensor:
    """Return a layer's "weight" or "bias" (``part``) with its batch norm folded in: weight, bias, mean and variance.

    The file does not hold eps: it is the default.
    """
    for value in (weight, *norm):
        floats = isinstance(value, Tensor) and value.is_floating_point()
        if not floats or value.shape[:1] != weight.shape[:1] or (value is not weight and value.dim() != 1):
            got = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
            refuse(where, "float tensors of one size", got, "The checkpoint is damaged.")
    return fold_batch_norm(weight, bias, NormValues(*norm))[part == "bias"]


def stacked_kind(parts: Sequence[Any]) -> tuple[str, str | None, int | None]:
    """Dtype, scheme and axis of what :func:`stack_weights` returns, by torch's names, before it is read.

    ``parts`` have ``dtype``, ``qscheme`` and ``axis`` as :class:`~qdeq.QuantizedWeight` has them.
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


def stack_weights(where: str, parts: Sequence[Weight]) -> QuantizedWeight | Tensor:
    """Return the rows of all parts, of equal size, in their order.

    A scale for a whole part becomes one for each of its rows, rounded to float32, as its dequantization rounds it: the
    float values are the same, bit for bit.

    Returns:
        A quantized weight per channel if all parts are of one 8-bit dtype with scales for rows, else a float tensor.

    """
    if not _stays_quantized(parts):
        floats = [p.detach() if isinstance(p, Tensor) else dequantize_source(p, where=where) for p in parts]
        dtypes = [part.dtype for part in floats]
        if not all(dtype.is_floating_point for dtype in dtypes):
            got = ", ".join(map(str, dtypes))
            refuse(where, "floating point tensors", got, "The checkpoint is damaged.")
        return torch.cat(floats if len(set(dtypes)) == 1 else [part.float() for part in floats])
    weights = [part for part in parts if isinstance(part, QuantizedWeight)]
    scales = [_per_row(w, w.scale.float().double() if w.axis is None else w.scale) for w in weights]
    zeros = [_per_row(w, w.zero_point) for w in weights]
    integers = torch.cat([part.int_repr for part in weights])
    dtype, shape = weights[0].dtype, tuple(integers.shape)
    return QuantizedWeight(
        integers, torch.cat(scales), torch.cat(zeros), 0, PER_CHANNEL, dtype, shape, weights[0].origin
    )


def _per_row(weight: QuantizedWeight, values: Tensor) -> Tensor:
    return values.expand(weight.shape[0]) if values.dim() == 0 else values
