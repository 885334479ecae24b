"""Quantized normalization layers, whose parameters were never quantized -> ``nn`` classes."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.fused import BNReLU2d, BNReLU3d
from qdeq.layers.layer import Activation, Layer
from qdeq.sources.eager.describe import Context, Describe, Rule, add_output, begin

__all__ = ["RULES"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _add_state(layer: Layer, module: Any, *names: str) -> Layer:
    for name in names:
        if getattr(module, name) is not None:
            layer.add_tensor(name, getattr(module, name))
    add_output(layer, module)
    return layer


def _batch_norm(kind: Any) -> Describe:
    def describe_batch_norm(module: Any, path: str, context: Context) -> Layer:
        layer = begin(module, path, kind, "num_features", "eps", "momentum")
        return _add_state(layer, module, "weight", "bias", *_STATISTICS)

    return describe_batch_norm


def _bn_relu(kind: Any, holder: type[nn.Module]) -> Rule:
    becomes = f"nn.{kind.__name__} and nn.ReLU, or {holder.__name__}"
    return Rule(_batch_norm(kind), becomes, activation=Activation(nn.ReLU, holder))


def _instance_norm(kind: Any) -> Describe:
    def describe_instance_norm(module: Any, path: str, context: Context) -> Layer:
        # torch's from_float passes affine where momentum belongs: the parameters, not the flag, tell.
        layer = begin(module, path, kind, "num_features", "eps", affine=module.weight is not None)
        return _add_state(layer, module, "weight", "bias")

    return describe_instance_norm


def describe_layer_norm(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.LayerNorm``; weight and bias of normalized_shape, either may be missing."""
    parts = {"elementwise_affine": module.weight is not None, "bias": module.bias is not None}
    layer = begin(module, path, nn.LayerNorm, "normalized_shape", "eps", **parts)
    return _add_state(layer, module, "weight", "bias")


def describe_group_norm(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.GroupNorm``; weight and bias (num_channels,) or missing."""
    names = ("num_groups", "num_channels", "eps")
    layer = begin(module, path, nn.GroupNorm, *names, affine=module.weight is not None)
    return _add_state(layer, module, "weight", "bias")


RULES: dict[type[nn.Module], Rule] = {
    nnq.BatchNorm2d: Rule(_batch_norm(nn.BatchNorm2d), "nn.BatchNorm2d"),
    nnq.BatchNorm3d: Rule(_batch_norm(nn.BatchNorm3d), "nn.BatchNorm3d"),
    nniq.BNReLU2d: _bn_relu(nn.BatchNorm2d, BNReLU2d),
    nniq.BNReLU3d: _bn_relu(nn.BatchNorm3d, BNReLU3d),
    nnq.LayerNorm: Rule(describe_layer_norm, "nn.LayerNorm"),
    nnq.GroupNorm: Rule(describe_group_norm, "nn.GroupNorm"),
    nnq.InstanceNorm1d: Rule(_instance_norm(nn.InstanceNorm1d), "nn.InstanceNorm1d"),
    nnq.InstanceNorm2d: Rule(_instance_norm(nn.InstanceNorm2d), "nn.InstanceNorm2d"),
    nnq.InstanceNorm3d: Rule(_instance_norm(nn.InstanceNorm3d), "nn.InstanceNorm3d"),
}
