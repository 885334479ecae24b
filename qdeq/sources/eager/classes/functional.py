"""QFunctional and FXFloatFunctional -> FloatFunctional, which has the same methods on float tensors."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.build import Build, Rule
from qdeq.tree.copying import copied

__all__ = ["RULES"]


def build_qfunctional(module: Any, path: str, build: Build) -> nn.Module:
    """Rebuild ``nnq.QFunctional``; ``activation_post_process``, which the user may have replaced, is copied."""
    build.output_qparams(module, path)
    functional = nnq.FloatFunctional()
    functional.activation_post_process = copied(module.activation_post_process)
    return functional


def build_fx_functional(module: Any, path: str, build: Build) -> nn.Module:
    """Rebuild ``nnq.FXFloatFunctional``, float already, as the class a user would have written."""
    del module, path, build
    return nnq.FloatFunctional()


RULES: dict[type[nn.Module], Rule] = {
    nnq.QFunctional: Rule(build_qfunctional, "torch.ao.nn.quantized.FloatFunctional"),
    nnq.FXFloatFunctional: Rule(build_fx_functional, "torch.ao.nn.quantized.FloatFunctional"),
}
