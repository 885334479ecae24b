"""Batch norm of a prepared module in a checkpoint, folded into the layer before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.layers.batch_norm import NormValues, fold_batch_norm

__all__ = ["fold_parts"]


def fold_parts(where: str, part: str, weight: Any, bias: Any, *norm: Any) -> Tensor:
    """Return ``weight`` or ``bias`` of a layer with its batch norm folded in.

    Args:
        where: for errors.
        part: "weight" or "bias".
        weight: float tensor, output channels first.
        bias: float tensor of one value per output channel, or None.
        norm: the batch norm's weight, bias, running mean and running variance; eps is the default, 1e-5.

    Raises:
        QdeqValueError: a part is no float tensor or not of one value per channel.

    """
    for value in (weight, *norm):
        floats = isinstance(value, Tensor) and value.is_floating_point()
        if not floats or value.shape[:1] != weight.shape[:1] or (value is not weight and value.dim() != 1):
            got = f"{type(value).__name__} of shape {tuple(getattr(value, 'shape', ()))}"
            raise QdeqValueError(expected(where, "float tensors of one size", got, "The checkpoint is damaged."))
    return fold_batch_norm(weight, bias, NormValues(*norm))[part == "bias"]
