"""Static quantized Linear and its fused ReLU form -> ``nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.modules.build import Build, Builder, Fused
from qdeq.packed import packed_bias

__all__ = ["BUILDERS", "LinearReLU"]


class LinearReLU(nn.Linear):
    """``nn.Linear`` followed by ReLU in one module, with the parameter names of the Linear alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


def build_linear(module: Any, path: str, build: Build) -> nn.Linear:
    """Rebuild ``nnq.Linear``; weight (out_features, in_features), bias (out_features,) or None."""
    packed = module._packed_params._packed_params
    has_bias = packed_bias(packed) is not None
    layer = nn.Linear(module.in_features, module.out_features, bias=has_bias, device="meta")
    build.weight(packed, module, path, layer)
    build.packed_bias(packed, module, path, layer)
    build.output_qparams(module, path)
    return layer


def build_linear_relu(module: Any, path: str, build: Build) -> Fused:
    """Rebuild ``nniq.LinearReLU`` as a Linear and the ReLU it owns."""
    return Fused(build_linear(module, path, build), nn.ReLU, LinearReLU, slots=1)


BUILDERS: dict[type[nn.Module], Builder] = {
    nnq.Linear: build_linear,
    nniq.LinearReLU: build_linear_relu,
}
