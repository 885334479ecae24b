"""Batch norm behind a layer: where it is, and what it comes to in eval mode."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

__all__ = ["batch_norm_affine", "fold_batch_norm", "norms_behind"]


def norms_behind(model: nn.Module) -> Iterator[tuple[str, tuple[str, nn.modules.batchnorm._BatchNorm]]]:
    """Layer -> the batch norm that is registered right behind it, before the next layer."""
    before = ""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if before and not path.startswith(before + "."):
                yield before, (path, module)
            before = ""
        elif isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim >= 2:
            before = path


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._BatchNorm, *, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer and the batch norm behind it as one layer."""
    factor, shift = batch_norm_affine(norm)
    axis = 1 if transposed else 0
    view = [1] * weight.ndim
    view[axis] = -1
    bias = torch.zeros_like(shift) if bias is None else bias
    return weight * factor.view(view), bias * factor + shift


def batch_norm_affine(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """(factor, shift) that a batch norm applies per channel in eval mode."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        mean, var = torch.zeros(norm.num_features), torch.ones(norm.num_features)
    factor = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    shift = -mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()
