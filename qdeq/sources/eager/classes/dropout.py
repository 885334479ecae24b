"""Quantized Dropout -> ``nn.Dropout``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Rule, begin

__all__ = ["RULES"]


def describe_dropout(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Dropout``, whose forward does nothing in either mode; the float one drops in training mode."""
    layer = begin(module, path, nn.Dropout, "p", "inplace")
    layer.notes.append("quantized Dropout did nothing; the float Dropout is active in training mode")
    return layer


RULES: dict[type[nn.Module], Rule] = {
    nnq.Dropout: Rule(describe_dropout, "nn.Dropout", "the quantized one does nothing, the float one drops in training")
}
