"""Quantized activations -> their ``nn`` classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.build import Build, Rule

__all__ = ["RULES"]


def _builder(make: Callable[[Any], nn.Module], prefix: str = "") -> Callable[[Any, str, Build], nn.Module]:
    def build_activation(module: Any, path: str, build: Build) -> nn.Module:
        build.output_qparams(module, path, prefix)
        return make(module)

    return build_activation


def build_relu6(module: Any, path: str, build: Build) -> nn.ReLU6:
    """Rebuild ``nnq.ReLU6``, a subclass of ``nn.ReLU`` that keeps the scale and zero point of its input."""
    del path, build
    return nn.ReLU6(module.inplace)


def build_prelu(module: Any, path: str, build: Build) -> nn.PReLU:
    """Rebuild ``nnq.PReLU``; weight (num_parameters,)."""
    layer = nn.PReLU(module.num_parameters, device="meta")
    build.weight(module.weight, module, path, layer)
    build.output_qparams(module, path)
    return layer


RULES: dict[type[nn.Module], Rule] = {
    nnq.ReLU6: Rule(build_relu6, "nn.ReLU6"),
    nnq.Hardswish: Rule(_builder(lambda module: nn.Hardswish(module.inplace)), "nn.Hardswish"),
    nnq.ELU: Rule(_builder(lambda module: nn.ELU(module.alpha, module.inplace)), "nn.ELU"),
    nnq.LeakyReLU: Rule(_builder(lambda module: nn.LeakyReLU(module.negative_slope, module.inplace)), "nn.LeakyReLU"),
    nnq.Sigmoid: Rule(
        _builder(lambda _: nn.Sigmoid(), "output_"), "nn.Sigmoid", "qnnpack runs it with scale 1/256 only"
    ),
    nnq.Softmax: Rule(_builder(lambda module: nn.Softmax(module.dim)), "nn.Softmax"),
    nnq.PReLU: Rule(build_prelu, "nn.PReLU", "its weight is in no state_dict: only a live module has it"),
}
