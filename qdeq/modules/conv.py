"""Static quantized Conv1d/2d/3d and their fused ReLU forms -> ``nn.Conv1d/2d/3d``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.modules.build import Build, Builder, Fused
from qdeq.packed import packed_bias

__all__ = ["BUILDERS", "ConvReLU1d", "ConvReLU2d", "ConvReLU3d"]


class ConvReLU1d(nn.Conv1d):
    """``nn.Conv1d`` followed by ReLU in one module, with the parameter names of the Conv1d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class ConvReLU2d(nn.Conv2d):
    """``nn.Conv2d`` followed by ReLU in one module, with the parameter names of the Conv2d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class ConvReLU3d(nn.Conv3d):
    """``nn.Conv3d`` followed by ReLU in one module, with the parameter names of the Conv3d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


def _conv_builder(layer_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_conv(module: Any, path: str, build: Build) -> Any:
        packed = module._packed_params
        layer = layer_class(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            groups=module.groups,
            bias=packed_bias(packed) is not None,
            padding_mode=module.padding_mode,
            device="meta",
        )
        build.weight(packed, module, path, layer)
        build.packed_bias(packed, module, path, layer)
        build.output_qparams(module, path)
        return layer

    return build_conv


def _conv_relu_builder(layer_class: Any, holder: type[nn.Module]) -> Builder:
    build_conv = _conv_builder(layer_class)

    def build_conv_relu(module: Any, path: str, build: Build) -> Fused:
        # Fusing Conv + BatchNorm + ReLU leaves two places behind the conv, Conv + ReLU leaves one.
        return Fused(build_conv(module, path, build), nn.ReLU, holder, slots=2)

    return build_conv_relu


BUILDERS: dict[type[nn.Module], Builder] = {
    nnq.Conv1d: _conv_builder(nn.Conv1d),
    nnq.Conv2d: _conv_builder(nn.Conv2d),
    nnq.Conv3d: _conv_builder(nn.Conv3d),
    nniq.ConvReLU1d: _conv_relu_builder(nn.Conv1d, ConvReLU1d),
    nniq.ConvReLU2d: _conv_relu_builder(nn.Conv2d, ConvReLU2d),
    nniq.ConvReLU3d: _conv_relu_builder(nn.Conv3d, ConvReLU3d),
}
