"""Quantized Linear (static, dynamic, sparse) and its fused forms -> ``nn.Linear``."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.nn.sparse.quantized as nnsq
import torch.ao.nn.sparse.quantized.dynamic as nnsqd
from torch import nn

from qdeq.layers.fused import LinearLeakyReLU, LinearReLU, LinearTanh
from qdeq.sources.eager.build import Build, Fused, Rule
from qdeq.sources.eager.classes.conv import unused_qparams
from qdeq.tree.copying import blank

__all__ = ["RULES", "packed_or_half"]


def packed_or_half(packed: Any, dtype: torch.dtype, build: Build) -> Any:
    """The source to read from a packed Linear weight.

    Args:
        packed: packed weight of a Linear.
        dtype: dtype that its module declares: qint8 or float16.
        build: counts a float16 weight as read.

    Returns:
        ``packed`` itself, or for float16, which has no scale, the weight as a float16 tensor; torch unpacks it to
        float32 values that are float16 numbers, saturated at 65504.

    """
    if dtype != torch.float16:
        return packed
    build.use(packed)
    return packed.unpack()[0].half()


def _linear(module: Any, path: str, build: Build) -> nn.Linear:
    packed = module._packed_params._packed_params
    bias = build.read_bias(packed, path)
    layer = blank(nn.Linear, module.in_features, module.out_features, bias=bias is not None)
    build.weight(packed_or_half(packed, module._packed_params.dtype, build), module, path, layer)
    build.biases([("bias", bias)], module, path, layer, "bias")
    return layer


def build_linear(module: Any, path: str, build: Build) -> nn.Linear:
    """Rebuild ``nnq.Linear``; weight (out_features, in_features), bias (out_features,) or None."""
    layer = _linear(module, path, build)
    build.output_qparams(module, path)
    return layer


def build_dynamic_linear(module: Any, path: str, build: Build) -> nn.Linear:
    """Rebuild ``nnqd.Linear``, int8 or float16; its output is float."""
    layer = _linear(module, path, build)
    unused_qparams(module, path, build)
    return layer


def build_linear_relu(module: Any, path: str, build: Build) -> Fused:
    """Rebuild ``nniq.LinearReLU`` as a Linear and the ReLU it owns."""
    return Fused(build_linear(module, path, build), nn.ReLU, LinearReLU, slots=1)


def build_dynamic_linear_relu(module: Any, path: str, build: Build) -> Fused:
    """Rebuild ``nniqd.LinearReLU`` as a Linear and the ReLU it owns."""
    return Fused(build_dynamic_linear(module, path, build), nn.ReLU, LinearReLU, slots=1)


def build_linear_leaky_relu(module: Any, path: str, build: Build) -> Fused:
    """Rebuild ``nniq.LinearLeakyReLU`` as a Linear and the LeakyReLU it owns."""
    slope = float(module.negative_slope)
    layer = build_linear(module, path, build)
    activation = partial(nn.LeakyReLU, slope)
    return Fused(layer, activation, LinearLeakyReLU, slots=1, held_attributes={"negative_slope": slope})


def build_linear_tanh(module: Any, path: str, build: Build) -> Fused:
    """Rebuild ``nniq.LinearTanh`` as a Linear and the tanh it owns."""
    return Fused(build_linear(module, path, build), nn.Tanh, LinearTanh, slots=1)


def _sparse_linear(module: Any, path: str, build: Build) -> nn.Linear:
    packed = module._packed_params._packed_params
    build.use(packed)
    build.use_bias(packed)
    weight, bias, row_block_size, col_block_size = module._weight_bias()
    layer = nn.Linear(module.in_features, module.out_features, bias=bias is not None, device="meta")
    build.weight(weight, module, path, layer)
    if bias is not None:
        build.tensor(bias, module, path, layer, "bias")
        build.note_zero_bias(bias, path)
    build.report.note(
        path, f"was stored in sparse blocks of {row_block_size} x {col_block_size}; the float weight is dense"
    )
    return layer


def build_sparse_linear(module: Any, path: str, build: Build) -> nn.Linear:
    """Rebuild a block-sparse static Linear as a dense ``nn.Linear``."""
    layer = _sparse_linear(module, path, build)
    build.output_qparams(module, path)
    return layer


_ONEDNN_ONLY = "torch runs it on onednn only"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Linear: Rule(build_linear, "nn.Linear"),
    nniq.LinearReLU: Rule(build_linear_relu, "nn.Linear and nn.ReLU, or LinearReLU"),
    nniq.LinearLeakyReLU: Rule(build_linear_leaky_relu, "nn.Linear and nn.LeakyReLU, or LinearLeakyReLU", _ONEDNN_ONLY),
    nniq.LinearTanh: Rule(build_linear_tanh, "nn.Linear and nn.Tanh, or LinearTanh", _ONEDNN_ONLY),
    nnqd.Linear: Rule(build_dynamic_linear, "nn.Linear", "int8 on every engine, float16 on fbgemm and x86"),
    nniqd.LinearReLU: Rule(build_dynamic_linear_relu, "nn.Linear and nn.ReLU, or LinearReLU"),
    nnsq.Linear: Rule(build_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by fbgemm"),
    nnsqd.Linear: Rule(_sparse_linear, "nn.Linear", "dense; packed by fbgemm and qnnpack, run by qnnpack"),
}
