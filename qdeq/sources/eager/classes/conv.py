"""Static and dynamic quantized Conv1d/2d/3d and their fused forms -> ``nn.Conv1d/2d/3d``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.layers.fused import ConvAdd2d, ConvAddReLU2d, ConvReLU1d, ConvReLU2d, ConvReLU3d
from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Describe, Rule, add_output, add_packed, begin, owning

__all__ = ["RULES", "begin_conv"]


_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


def begin_conv(kind: Any, module: Any, path: str) -> Layer:
    """A float convolution with the geometry of a quantized or reference one, transposed or not."""
    names = (*_GEOMETRY, "output_padding") if module.transposed else _GEOMETRY
    return begin(kind, module, path, *names)


def _conv(kind: Any, *, dynamic: bool = False) -> Describe:
    def describe_conv(module: Any, path: str, context: Context) -> Layer:
        layer = begin_conv(kind, module, path)
        add_packed(layer, module._packed_params, "_packed_params")
        add_output(layer, module, packed=module._packed_params, dynamic=dynamic)
        return layer

    return describe_conv


def _conv_relu(kind: Any, holder: type[nn.Module]) -> Rule:
    # Fusing Conv + BatchNorm + ReLU leaves two places behind the conv, Conv + ReLU leaves one.
    return owning(_conv(kind), kind, holder, places=2)


_TWO_INPUTS = "takes two inputs; torch runs it on onednn only"
_3D = "torch cannot read it back from qnnpack"

RULES: dict[type[nn.Module], Rule] = {
    nnq.Conv1d: Rule(_conv(nn.Conv1d), "nn.Conv1d"),
    nnq.Conv2d: Rule(_conv(nn.Conv2d), "nn.Conv2d"),
    nnq.Conv3d: Rule(_conv(nn.Conv3d), "nn.Conv3d", _3D),
    nniq.ConvReLU1d: _conv_relu(nn.Conv1d, ConvReLU1d),
    nniq.ConvReLU2d: _conv_relu(nn.Conv2d, ConvReLU2d),
    nniq.ConvReLU3d: _conv_relu(nn.Conv3d, ConvReLU3d),
    nniq.ConvAdd2d: Rule(_conv(ConvAdd2d), "ConvAdd2d", _TWO_INPUTS),
    nniq.ConvAddReLU2d: Rule(_conv(ConvAddReLU2d), "ConvAddReLU2d", _TWO_INPUTS),
    nnqd.Conv1d: Rule(_conv(nn.Conv1d, dynamic=True), "nn.Conv1d"),
    nnqd.Conv2d: Rule(_conv(nn.Conv2d, dynamic=True), "nn.Conv2d"),
    nnqd.Conv3d: Rule(_conv(nn.Conv3d, dynamic=True), "nn.Conv3d", _3D),
}
