"""What a target of a plan comes to: one weight or tensor, read and put together."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.layers.batch_norm import NormValues, fold_batch_norm
from qdeq.state_dicts.parts import Fold, Stack
from qdeq.state_dicts.stacking import stack_weights
from qdeq.weights.weight import QuantizedWeight, weight_from_tensor

__all__ = ["as_weight", "shape_of", "value_of"]


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a weight or tensor; None for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor | QuantizedWeight) else None


def as_weight(where: str, value: Any) -> QuantizedWeight | Tensor:
    """A tensor of torch's quantized dtypes as plain integers; anything else as it is."""
    return weight_from_tensor(value, where) if isinstance(value, Tensor) and value.is_quantized else value


def value_of(where: str, value: Any) -> QuantizedWeight | Tensor:
    """The value of a target whose tensors are read.

    Args:
        where: for errors.
        value: a tensor, quantized or not, a quantized weight, or a :class:`Fold` or :class:`Stack` of them.

    Raises:
        QdeqValueError: parts that do not fit one another.

    """
    if isinstance(value, Fold):
        return _fold(where, value.part, *value.parts).detach()
    if isinstance(value, Stack):
        return stack_weights(where, [as_weight(where, part) for part in value.parts])
    return as_weight(where, value)


def _fold(where: str, part: str, weight: Any, bias: Any, *norm: Any) -> Tensor:
    """Return a layer's "weight" or "bias" (``part``) with its batch norm folded in: weight, bias, mean and variance.

    The file does not hold eps: it is the default.
    """
    for value in (weight, *norm):
        floats = isinstance(value, Tensor) and value.is_floating_point()
        if not floats or value.shape[:1] != weight.shape[:1] or (value is not weight and value.dim() != 1):
            got = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
            raise QdeqValueError(expected(where, "float tensors of one size", got, "The checkpoint is damaged."))
    return fold_batch_norm(weight, bias, NormValues(*norm))[part == "bias"]
