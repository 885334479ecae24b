"""Static and dynamic quantized Conv1d/2d/3d and their fused forms -> ``nn.Conv1d/2d/3d``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.layers.fused import ConvAdd2d, ConvAddReLU2d, ConvReLU1d, ConvReLU2d, ConvReLU3d
from qdeq.sources.eager.build import Build, Fused, Rule
from qdeq.tree.copying import blank

__all__ = [
    "RULES",
    "read_ahead",
    "unused_qparams",
]


def unused_qparams(module: Any, path: str, build: Build) -> None:
    """Name the scale and zero point that a dynamic module inherits; its output is float."""
    build.drop_qparams(module, path, "unused: the output of a dynamic module is float")


_Account = Callable[[Any, str, Build], None]


def _output_qparams(module: Any, path: str, build: Build) -> None:
    build.output_qparams(module, path)


def empty_conv(layer_class: Any, module: Any, has_bias: bool) -> Any:
    """A float convolution on the meta device with the geometry of a quantized or reference one, transposed or not."""
    transposed = {"output_padding": module.output_padding} if module.transposed else {}
    return blank(
        layer_class,
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        bias=has_bias,
        padding_mode=module.padding_mode,
        **transposed,
    )


def _conv_builder(layer_class: Any, qparams: _Account = _output_qparams) -> Callable[[Any, str, Build], Any]:
    def build_conv(module: Any, path: str, build: Build) -> Any:
        packed = module._packed_params
        bias = build.read_bias(packed, path)
        layer = empty_conv(layer_class, module, bias is not None)
        build.weight(packed, module, path, layer)
        build.biases([("bias", bias)], module, path, layer, "bias")
        qparams(module, path, build)
        return layer

    return build_conv


def _conv_relu_rule(layer_class: Any, holder: type[nn.Module]) -> Rule:
    build_conv = _conv_builder(layer_class)

    def build_conv_relu(module: Any, path: str, build: Build) -> Fused:
        # Fusing Conv + BatchNorm + ReLU leaves two places behind the conv, Conv + ReLU leaves one.
        return Fused(build_conv(module, path, build), nn.ReLU, holder, slots=2)

    return Rule(build_conv_relu, f"nn.{layer_class.__name__} and nn.ReLU, or {holder.__name__}")


def read_ahead(modules: Iterable[Any], build: Build) -> None:
    """Read the weights of all 2-d convolutions among ``modules`` in one call."""
    found = []
    for module in modules:
        if type(module) not in _AT_ONCE:
            continue
        packed, size = getattr(module, "_packed_params", None), getattr(module, "kernel_size", ())
        if isinstance(packed, torch.ScriptObject) and len(size) == 2 and module.groups > 0:
            found.append((packed, (module.out_channels, module.in_channels // module.groups, *size)))
    build.read_ahead(found)


_AT_ONCE = (nnq.Conv2d, nniq.ConvReLU2d, nniq.ConvAdd2d, nniq.ConvAddReLU2d, nnqd.Conv2d)

RULES: dict[type[nn.Module], Rule] = {
    nnq.Conv1d: Rule(_conv_builder(nn.Conv1d), "nn.Conv1d"),
    nnq.Conv2d: Rule(_conv_builder(nn.Conv2d), "nn.Conv2d"),
    nnq.Conv3d: Rule(_conv_builder(nn.Conv3d), "nn.Conv3d", "torch cannot read it back from qnnpack"),
    nniq.ConvReLU1d: _conv_relu_rule(nn.Conv1d, ConvReLU1d),
    nniq.ConvReLU2d: _conv_relu_rule(nn.Conv2d, ConvReLU2d),
    nniq.ConvReLU3d: _conv_relu_rule(nn.Conv3d, ConvReLU3d),
    nniq.ConvAdd2d: Rule(_conv_builder(ConvAdd2d), "takes two inputs; torch runs it on onednn only"),
    nniq.ConvAddReLU2d: Rule(_conv_builder(ConvAddReLU2d), "takes two inputs; torch runs it on onednn only"),
    nnqd.Conv1d: Rule(_conv_builder(nn.Conv1d, unused_qparams), "nn.Conv1d"),
    nnqd.Conv2d: Rule(_conv_builder(nn.Conv2d, unused_qparams), "nn.Conv2d"),
    nnqd.Conv3d: Rule(_conv_builder(nn.Conv3d, unused_qparams), "nn.Conv3d", "torch cannot read it back from qnnpack"),
}
