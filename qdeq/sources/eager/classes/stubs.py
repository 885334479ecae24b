"""Quantize, DeQuantize and the stubs they replaced -> ``nn.Identity``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

from qdeq.layers.layer import Layer, Role
from qdeq.sources.eager.describe import Context, Describe, Rule, add_output, begin
from qdeq.words import dtype_name

__all__ = ["RULES"]


def _identity(role: Role) -> Describe:
    """Describe a module that the float model has no use for."""

    def describe_identity(module: Any, path: str, context: Context) -> Layer:
        layer = begin(nn.Identity, module, path)
        layer.role = role
        return layer

    return describe_identity


def describe_quantize(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Quantize``: the float model takes its input as it is."""
    layer = _identity(Role.QUANTIZE)(module, path, context)
    add_output(layer, module)
    assert layer.output is not None  # add_output saw to it
    layer.output = dataclasses.replace(layer.output, dtype=dtype_name(module.dtype), zero_point_first=True)
    return layer


RULES: dict[type[nn.Module], Rule] = {
    nnq.Quantize: Rule(describe_quantize, "nn.Identity"),
    nnq.DeQuantize: Rule(_identity(Role.DEQUANTIZE), "nn.Identity"),
    QuantStub: Rule(_identity(Role.STUB), "nn.Identity"),
    DeQuantStub: Rule(_identity(Role.STUB), "nn.Identity"),
}
