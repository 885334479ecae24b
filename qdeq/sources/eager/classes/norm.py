"""Quantized normalization layers, whose parameters were never quantized -> ``nn`` classes."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.fused import BNReLU2d, BNReLU3d
from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Describe, Rule, add_output, begin, owning

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
        layer = begin(kind, module, path, "num_features", "eps", "momentum")
        return _add_state(layer, module, "weight", "bias", *_STATISTICS)

    return describe_batch_norm


def _affine_norm(kind: Any, *names: str) -> Describe:
    """Describe a norm whose float class has the arguments ``names``, eps and affine; weight and bias may be missing."""

    def describe_affine_norm(module: Any, path: str, context: Context) -> Layer:
        # torch's from_float passes affine where momentum belongs: the parameters, not the flag, tell.
        layer = begin(kind, module, path, *names, "eps", affine=module.weight is not None)
        return _add_state(layer, module, "weight", "bias")

    return describe_affine_norm


def describe_layer_norm(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.LayerNorm``; weight and bias of normalized_shape, either may be missing."""
    parts = {"elementwise_affine": module.weight is not None, "bias": module.bias is not None}
    layer = begin(nn.LayerNorm, module, path, "normalized_shape", "eps", **parts)
    return _add_state(layer, module, "weight", "bias")


RULES: dict[type[nn.Module], Rule] = {
    nnq.BatchNorm2d: Rule(_batch_norm(nn.BatchNorm2d), "nn.BatchNorm2d"),
    nnq.BatchNorm3d: Rule(_batch_norm(nn.BatchNorm3d), "nn.BatchNorm3d"),
    nniq.BNReLU2d: owning(_batch_norm(nn.BatchNorm2d), nn.BatchNorm2d, BNReLU2d),
    nniq.BNReLU3d: owning(_batch_norm(nn.BatchNorm3d), nn.BatchNorm3d, BNReLU3d),
    nnq.LayerNorm: Rule(describe_layer_norm, "nn.LayerNorm"),
    nnq.GroupNorm: Rule(_affine_norm(nn.GroupNorm, "num_groups", "num_channels"), "nn.GroupNorm"),
    nnq.InstanceNorm1d: Rule(_affine_norm(nn.InstanceNorm1d, "num_features"), "nn.InstanceNorm1d"),
    nnq.InstanceNorm2d: Rule(_affine_norm(nn.InstanceNorm2d, "num_features"), "nn.InstanceNorm2d"),
    nnq.InstanceNorm3d: Rule(_affine_norm(nn.InstanceNorm3d, "num_features"), "nn.InstanceNorm3d"),
}
