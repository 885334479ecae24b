"""The ways a state dict comes in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import qdeq

Sources = Callable[[nn.Module, Path], object]


SOURCES: dict[str, Sources] = {
    "state_dict": lambda model, path: model.state_dict(),
    "plain_dict": lambda model, path: dict(model.state_dict()),
    "nested": lambda model, path: {"model": model.state_dict()},
    "archive": lambda model, path: _archived(model, path),
}


def _archived(model: nn.Module, path: Path) -> qdeq.files.torch_archive.Archive:
    torch.save(model.state_dict(), path / "model.pth")
    return qdeq.open(path / "model.pth")
