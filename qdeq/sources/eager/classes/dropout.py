"""Quantized Dropout -> ``nn.Dropout``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.build import Build, Rule

__all__ = ["RULES"]


def build_dropout(module: Any, path: str, build: Build) -> nn.Dropout:
    """Rebuild ``nnq.Dropout``, whose forward does nothing in either mode; the float one drops in training mode."""
    build.report.note(path, "quantized Dropout did nothing; the float Dropout is active in training mode")
    return nn.Dropout(module.p, module.inplace)


RULES: dict[type[nn.Module], Rule] = {
    nnq.Dropout: Rule(build_dropout, "nn.Dropout", "the quantized one does nothing, the float one drops in training")
}
