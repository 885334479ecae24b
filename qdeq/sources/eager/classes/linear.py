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
from qdeq.sources.eager.describe import BIAS, Context, Describe, Rule, add_output, add_packed, begin, note_zero_bias
from qdeq.words import join

__all__ = ["RULES"]

_HELD = "_packed_params._packed_params"


def _linear(*, dynamic: bool = False) -> Describe:
    """Describe a packed Linear, int8 or float16; weight (out_features, in_features), bias (out_features,) or None."""

    def describe_linear(module: Any, path: str, context: Context) -> Layer:
        layer = begin(module, path, nn.Linear, "in_features", "out_features")
        packed = module._packed_params
        add_packed(layer, packed._packed_params, _HELD, packed.dtype)
        add_output(layer, module, packed=packed._packed_params, dynamic=dynamic)
        return layer

    return describe_linear


def describe_linear_leaky_relu(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nniq.LinearLeakyReLU``: a Linear and the LeakyReLU it owns."""
    layer = _linear()(module, path, context)
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
    weight, bias, row_block_size, col_block_size = module._weight_bias()
    layer, held = begin(module, path, nn.Linear, "in_features", "out_features"), join(path, _HELD)
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
    nnq.Linear: Rule(_linear(), "nn.Linear"),
    nniq.LinearReLU: Rule(_linear(), _RELU, activation=Activation(nn.ReLU, LinearReLU)),
    nniq.LinearLeakyReLU: Rule(
        describe_linear_leaky_relu,
        "nn.Linear and nn.LeakyReLU, or LinearLeakyReLU",
        _ONEDNN_ONLY,
        Activation(nn.LeakyReLU, LinearLeakyReLU),
    ),
    nniq.LinearTanh: Rule(
        _linear(), "nn.Linear and nn.Tanh, or LinearTanh", _ONEDNN_ONLY, Activation(nn.Tanh, LinearTanh)
    ),
    nnqd.Linear: Rule(_linear(dynamic=True), "nn.Linear", "int8 on every engine, float16 on fbgemm and x86"),
    nniqd.LinearReLU: Rule(_linear(dynamic=True), _RELU, activation=Activation(nn.ReLU, LinearReLU)),
    nnsq.Linear: Rule(describe_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by fbgemm"),
    nnsqd.Linear: Rule(
        describe_dynamic_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by qnnpack"
    ),
}
