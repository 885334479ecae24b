"""Quantized Linear (static, dynamic, sparse) and its fused forms -> ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.nn.sparse.quantized as nnsq
import torch.ao.nn.sparse.quantized.dynamic as nnsqd
from torch import nn

from qdeq.layers.fused import LinearLeakyReLU, LinearReLU, LinearTanh
from qdeq.layers.layer import Activation, Layer, Role, Source
from qdeq.sources.eager.describe import (
    BIAS,
    Context,
    Rule,
    add_output,
    add_packed,
    begin,
    make_dynamic,
    note_zero_bias,
)
from qdeq.words import join

__all__ = ["RULES"]

_HELD = "_packed_params._packed_params"


def _begin(module: Any, path: str) -> Layer:
    return begin(module, path, nn.Linear, in_features=module.in_features, out_features=module.out_features)


def _packed_linear(module: Any, path: str) -> Layer:
    layer = _begin(module, path)
    add_packed(layer, module._packed_params._packed_params, _HELD, module._packed_params.dtype)
    return layer


def describe_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.Linear``; weight (out_features, in_features), bias (out_features,) or None."""
    del context
    layer = _packed_linear(module, path)
    add_output(layer, module, packed=module._packed_params._packed_params)
    return layer


def describe_dynamic_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnqd.Linear``, int8 or float16; its output is float."""
    del context
    layer = _packed_linear(module, path)
    make_dynamic(layer, module)
    return layer


def describe_linear_leaky_relu(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nniq.LinearLeakyReLU``: a Linear and the LeakyReLU it owns."""
    layer = describe_linear(module, path, context)
    slope = float(module.negative_slope)
    layer.activation = Activation(nn.LeakyReLU, LinearLeakyReLU, args={"negative_slope": slope})
    return layer


def describe_sparse_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe a block-sparse static Linear as a dense ``nn.Linear``."""
    layer = describe_dynamic_sparse_linear(module, path, context)
    layer.role = Role.LAYER
    add_output(layer, module)
    return layer


def describe_dynamic_sparse_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe a block-sparse dynamic Linear as a dense ``nn.Linear``."""
    del context
    weight, bias, row_block_size, col_block_size = module._weight_bias()
    layer, held = _begin(module, path), join(path, _HELD)
    layer.args["bias"] = bias is not None
    layer.role = Role.DYNAMIC
    layer.add("weight", Source(join(path, "weight"), weight, held))
    if bias is not None:
        source = Source(join(path, "bias"), bias, held + BIAS)
        layer.add("bias", source)
        note_zero_bias(layer, source)
    blocks = f"{row_block_size} x {col_block_size}"
    layer.notes.append(f"was stored in sparse blocks of {blocks}; the float weight is dense")
    return layer


_RELU = "nn.Linear and nn.ReLU, or LinearReLU"
_ONEDNN_ONLY = "torch runs it on onednn only"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Linear: Rule(describe_linear, "nn.Linear"),
    nniq.LinearReLU: Rule(describe_linear, _RELU, activation=Activation(nn.ReLU, LinearReLU)),
    nniq.LinearLeakyReLU: Rule(
        describe_linear_leaky_relu,
        "nn.Linear and nn.LeakyReLU, or LinearLeakyReLU",
        _ONEDNN_ONLY,
        Activation(nn.LeakyReLU, LinearLeakyReLU),
    ),
    nniq.LinearTanh: Rule(
        describe_linear, "nn.Linear and nn.Tanh, or LinearTanh", _ONEDNN_ONLY, Activation(nn.Tanh, LinearTanh)
    ),
    nnqd.Linear: Rule(describe_dynamic_linear, "nn.Linear", "int8 on every engine, float16 on fbgemm and x86"),
    nniqd.LinearReLU: Rule(describe_dynamic_linear, _RELU, activation=Activation(nn.ReLU, LinearReLU)),
    nnsq.Linear: Rule(describe_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by fbgemm"),
    nnsqd.Linear: Rule(
        describe_dynamic_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by qnnpack"
    ),
}
