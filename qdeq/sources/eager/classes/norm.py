"""Quantized normalization layers, whose parameters were never quantized -> ``nn`` classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.fused import BNReLU2d, BNReLU3d
from qdeq.sources.eager.build import Build, Fused, Rule

__all__ = ["RULES"]


def _copy_state(module: Any, path: str, build: Build, layer: Any) -> Any:
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        del value
        build.tensor(getattr(module, name), module, path, layer, name)
    build.output_qparams(module, path)
    return layer


def _batch_norm(layer_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_batch_norm(module: Any, path: str, build: Build) -> Any:
        layer = layer_class(module.num_features, module.eps, module.momentum, device="meta")
        return _copy_state(module, path, build, layer)

    return build_batch_norm


def _bn_relu(layer_class: Any, holder: type[nn.Module]) -> Rule:
    build_batch_norm = _batch_norm(layer_class)

    def build_bn_relu(module: Any, path: str, build: Build) -> Fused:
        return Fused(build_batch_norm(module, path, build), nn.ReLU, holder, slots=1)

    return Rule(build_bn_relu, f"nn.{layer_class.__name__} and nn.ReLU, or {holder.__name__}")


def _instance_norm(layer_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_instance_norm(module: Any, path: str, build: Build) -> Any:
        # torch's from_float passes affine where momentum belongs: the parameters, not the flag, tell.
        layer = layer_class(module.num_features, module.eps, affine=module.weight is not None, device="meta")
        return _copy_state(module, path, build, layer)

    return build_instance_norm


def build_layer_norm(module: Any, path: str, build: Build) -> nn.LayerNorm:
    """Rebuild ``nnq.LayerNorm``; weight and bias of normalized_shape, either may be missing."""
    affine, bias = module.weight is not None, module.bias is not None
    layer = nn.LayerNorm(module.normalized_shape, module.eps, affine, bias, device="meta")
    _copy_state(module, path, build, layer)
    return layer


def build_group_norm(module: Any, path: str, build: Build) -> nn.GroupNorm:
    """Rebuild ``nnq.GroupNorm``; weight and bias (num_channels,) or missing."""
    affine = module.weight is not None
    layer = nn.GroupNorm(module.num_groups, module.num_channels, module.eps, affine, device="meta")
    _copy_state(module, path, build, layer)
    return layer


RULES: dict[type[nn.Module], Rule] = {
    nnq.BatchNorm2d: Rule(_batch_norm(nn.BatchNorm2d), "nn.BatchNorm2d"),
    nnq.BatchNorm3d: Rule(_batch_norm(nn.BatchNorm3d), "nn.BatchNorm3d"),
    nniq.BNReLU2d: _bn_relu(nn.BatchNorm2d, BNReLU2d),
    nniq.BNReLU3d: _bn_relu(nn.BatchNorm3d, BNReLU3d),
    nnq.LayerNorm: Rule(build_layer_norm, "nn.LayerNorm"),
    nnq.GroupNorm: Rule(build_group_norm, "nn.GroupNorm"),
    nnq.InstanceNorm1d: Rule(_instance_norm(nn.InstanceNorm1d), "nn.InstanceNorm1d"),
    nnq.InstanceNorm2d: Rule(_instance_norm(nn.InstanceNorm2d), "nn.InstanceNorm2d"),
    nnq.InstanceNorm3d: Rule(_instance_norm(nn.InstanceNorm3d), "nn.InstanceNorm3d"),
}
