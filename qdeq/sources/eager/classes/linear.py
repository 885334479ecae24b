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
from qdeq.sources.eager.describe import BIAS, Context, Describe, Rule, add_output, add_packed, add_pair, begin, owning
from qdeq.words import join

__all__ = ["RULES"]

_HELD = "_packed_params._packed_params"


def _linear(*, dynamic: bool = False) -> Describe:
    """Describe a packed Linear, int8 or float16; weight (out_features, in_features), bias (out_features,) or None."""

    def describe_linear(module: Any, path: str, context: Context) -> Layer:
        layer = begin(nn.Linear, module, path, "in_features", "out_features")
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


def describe_dynamic_sparse_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe a block-sparse dynamic Linear as a dense ``nn.Linear``."""
    weight, bias, rows, columns = module._weight_bias()
    layer, held = begin(nn.Linear, module, path, "in_features", "out_features"), join(path, _HELD)
    source = None if bias is None else Source(join(path, "bias"), bias, held + BIAS)
    add_pair(layer, Source(join(path, "weight"), weight, held), source)
    layer.role = Role.DYNAMIC
    layer.notes.append(f"was stored in sparse blocks of {rows} x {columns}; the float weight is dense")
    return layer


def describe_sparse_linear(module: Any, path: str, context: Context) -> Layer:
    """Describe a block-sparse static Linear as a dense ``nn.Linear``."""
    layer = describe_dynamic_sparse_linear(module, path, context)
    layer.role = Role.LAYER
    add_output(layer, module)
    return layer


_DENSE = "dense; packed by fbgemm and qnnpack, run"
_ONEDNN_ONLY = "torch runs it on onednn only"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Linear: Rule(_linear(), "nn.Linear"),
    nniq.LinearReLU: owning(_linear(), nn.Linear, LinearReLU),
    nniq.LinearLeakyReLU: owning(
        describe_linear_leaky_relu, nn.Linear, LinearLeakyReLU, nn.LeakyReLU, note=_ONEDNN_ONLY
    ),
    nniq.LinearTanh: owning(_linear(), nn.Linear, LinearTanh, nn.Tanh, note=_ONEDNN_ONLY),
    nnqd.Linear: Rule(_linear(dynamic=True), "nn.Linear", "int8 on every engine, float16 on fbgemm and x86"),
    nniqd.LinearReLU: owning(_linear(dynamic=True), nn.Linear, LinearReLU),
    nnsq.Linear: Rule(describe_sparse_linear, "nn.Linear", f"{_DENSE} by fbgemm"),
    nnsqd.Linear: Rule(describe_dynamic_sparse_linear, "nn.Linear", f"{_DENSE} by qnnpack"),
}
