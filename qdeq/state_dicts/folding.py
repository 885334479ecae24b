"""Batch norm folded into the layer before it, as ``torch.nn.utils.fusion.fuse_conv_bn_weights`` does; and undone."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqValueError, expected

__all__ = ["fold_batch_norm", "identity_variance"]

DEFAULT_EPS = 1e-5


def fold_batch_norm(where: str, part: str, weight: Any, bias: Any, *norm: Any) -> Tensor:
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
    gamma, beta, mean, variance = norm
    factor: Tensor = gamma * torch.rsqrt(variance + DEFAULT_EPS)
    if part == "weight":
        folded: Tensor = weight * factor.reshape([-1] + [1] * (weight.dim() - 1))
        return folded
    start = torch.zeros_like(mean) if bias is None else bias
    shift: Tensor = (start - mean) * factor + beta
    return shift


def identity_variance(where: str, eps: float) -> float:
    """Return the float32 variance with which ``(x - 0) / sqrt(variance + eps) * 1 + 0`` is ``x`` bit for bit.

    The sum must round to 1 in float32; 1 - eps rounded, or a neighbour of it.

    Args:
        where: for errors.
        eps: the batch norm's.

    Raises:
        QdeqValueError: no variance does it (eps of 1 or more).

    """
    probe = torch.linspace(0.1, 1.9, 257)[None, :, None].contiguous()
    ones, zeros = torch.ones(257), torch.zeros(257)
    start = torch.tensor(1.0 - eps, dtype=torch.float32)
    below = torch.nextafter(start, torch.tensor(-math.inf))
    above = torch.nextafter(start, torch.tensor(math.inf))
    for variance in (start, above, below):
        if float(variance) >= 0:
            result = nn.functional.batch_norm(probe, zeros, variance.expand(257), ones, zeros, False, 0.0, eps)
            if torch.equal(result, probe):
                return float(variance)
    raise QdeqValueError(expected(f"{where}: eps", "an eps below 1", str(eps), "Remove the batch norm: it is folded."))
