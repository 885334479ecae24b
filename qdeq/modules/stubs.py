"""Quantize, DeQuantize and the stubs they replaced -> ``nn.Identity``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

from qdeq.modules.build import Build, Builder

__all__ = ["BUILDERS"]


def build_quantize(module: Any, path: str, build: Build) -> nn.Identity:
    """Rebuild ``nnq.Quantize``: the float model takes its input as it is."""
    build.output_qparams(module, path)
    return nn.Identity()


def build_identity(module: Any, path: str, build: Build) -> nn.Identity:
    """Rebuild a stub that holds nothing."""
    del module, path, build
    return nn.Identity()


BUILDERS: dict[type[nn.Module], Builder] = {
    nnq.Quantize: build_quantize,
    nnq.DeQuantize: build_identity,
    QuantStub: build_identity,
    DeQuantStub: build_identity,
}
