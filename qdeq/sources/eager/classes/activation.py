"""Quantized activations and Dropout -> their ``nn`` classes."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Describe, Rule, add_output, begin

__all__ = ["RULES"]


def _describe(kind: type[nn.Module], *names: str, prefix: str = "") -> Describe:
    """Describe an activation whose float class has the arguments ``names``."""

    def describe_activation(module: Any, path: str, context: Context) -> Layer:
        layer = begin(kind, module, path, *names)
        add_output(layer, module, prefix)
        return layer

    return describe_activation


def describe_relu6(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.ReLU6``, a subclass of ``nn.ReLU`` that keeps the scale and zero point of its input."""
    return begin(nn.ReLU6, module, path, "inplace")


def describe_prelu(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.PReLU``; weight (num_parameters,)."""
    layer = _describe(nn.PReLU, "num_parameters")(module, path, context)
    layer.add_tensor("weight", module.weight)
    return layer


def describe_dropout(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Dropout``, whose forward does nothing in either mode; the float one drops in training mode."""
    layer = begin(nn.Dropout, module, path, "p", "inplace")
    layer.notes.append("quantized Dropout did nothing; the float Dropout is active in training mode")
    return layer


_SIGMOID = "qnnpack runs it with scale 1/256 only"
_PRELU = (
    "its weight is in no state_dict: only a live module has it; where the weight's grid ends below 1, "
    "torch's int8 kernel multiplies positive values by that end, the float one leaves them"
)
_DROPOUT = "the quantized one does nothing, the float one drops in training"

RULES: dict[type[nn.Module], Rule] = {
    nnq.ReLU6: Rule(describe_relu6, "nn.ReLU6"),
    nnq.Hardswish: Rule(_describe(nn.Hardswish, "inplace"), "nn.Hardswish"),
    nnq.ELU: Rule(_describe(nn.ELU, "alpha", "inplace"), "nn.ELU"),
    nnq.LeakyReLU: Rule(_describe(nn.LeakyReLU, "negative_slope", "inplace"), "nn.LeakyReLU"),
    nnq.Sigmoid: Rule(_describe(nn.Sigmoid, prefix="output_"), "nn.Sigmoid", _SIGMOID),
    nnq.Softmax: Rule(_describe(nn.Softmax, "dim"), "nn.Softmax"),
    nnq.PReLU: Rule(describe_prelu, "nn.PReLU", _PRELU),
    nnq.Dropout: Rule(describe_dropout, "nn.Dropout", _DROPOUT),
}
