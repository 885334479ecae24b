"""Importing torchvision, also where its compiled operators do not load."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

__all__ = ["import_torchvision"]

_stubs: list[torch.library.Library] = []  # a library's operators live as long as the object does


def import_torchvision() -> ModuleType:
    """Import torchvision, with its ``models`` and ``datasets``.

    A torchvision built for CUDA does not load its own operators beside a CPU build of torch, and then stops at the
    first one it describes, ``torchvision::nms``. Its models and data sets use none of them, so declaring their
    signatures is enough. That is done only if the plain import fails.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: the import fails for another reason.

    """
    try:
        torchvision = importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _stubs:
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # what the failed import left half done
        stub = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            stub.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _stubs.append(stub)
        torchvision = importlib.import_module("torchvision")
    importlib.import_module("torchvision.models")
    importlib.import_module("torchvision.datasets")
    return torchvision
