"""Quantize, DeQuantize and the stubs they replaced -> ``nn.Identity``."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

from qdeq.layers.layer import Layer, Role
from qdeq.sources.eager.describe import Context, Rule, add_output, begin
from qdeq.words import dtype_name

__all__ = ["RULES"]


def describe_quantize(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Quantize``: the float model takes its input as it is."""
    layer = begin(module, path, nn.Identity)
    add_output(layer, module)
    assert layer.output is not None  # add_output saw to it
    layer.output = dataclasses.replace(layer.output, dtype=dtype_name(module.dtype), zero_point_first=True)
    layer.role = Role.QUANTIZE
    return layer


def describe_dequantize(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.DeQuantize``, which holds nothing."""
    layer = describe_stub(module, path, context)
    layer.role = Role.DEQUANTIZE
    return layer


def describe_stub(module: Any, path: str, context: Context) -> Layer:
    """Describe a stub that holds nothing and does nothing."""
    layer = begin(module, path, nn.Identity)
    layer.role = Role.STUB
    return layer


RULES: dict[type[nn.Module], Rule] = {
    nnq.Quantize: Rule(describe_quantize, "nn.Identity"),
    nnq.DeQuantize: Rule(describe_dequantize, "nn.Identity"),
    QuantStub: Rule(describe_stub, "nn.Identity"),
    DeQuantStub: Rule(describe_stub, "nn.Identity"),
}
