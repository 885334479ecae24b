"""Quantize, DeQuantize and the stubs they replaced -> ``nn.Identity``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

from qdeq.sources.eager.build import Build, Rule

__all__ = ["RULES"]


def build_quantize(module: Any, path: str, build: Build) -> nn.Identity:
    """Rebuild ``nnq.Quantize``: the float model takes its input as it is."""
    build.output_qparams(module, path)
    build.report.activation_dtypes[path] = str(module.dtype).removeprefix("torch.")
    return nn.Identity()


def build_identity(module: Any, path: str, build: Build) -> nn.Identity:
    """Rebuild a stub that holds nothing."""
    del module, path, build
    return nn.Identity()


RULES: dict[type[nn.Module], Rule] = {
    nnq.Quantize: Rule(build_quantize, "nn.Identity"),
    nnq.DeQuantize: Rule(build_identity, "nn.Identity"),
    QuantStub: Rule(build_identity, "nn.Identity"),
    DeQuantStub: Rule(build_identity, "nn.Identity"),
}
