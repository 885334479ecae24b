"""Batch norm behind a layer: where it is. What it comes to: :mod:`qdeq.layers.batch_norm`."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["norms_behind"]


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
