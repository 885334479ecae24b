"""QFunctional and FXFloatFunctional -> FloatFunctional, which has the same methods on float tensors."""

from __future__ import annotations

import copy
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.layer import Layer
from qdeq.sources.eager.describe import Context, Rule, add_output, begin
from qdeq.tree.walk import empty_containers

__all__ = ["RULES"]


def describe_qfunctional(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.QFunctional``; ``activation_post_process``, which the user may have replaced, is copied."""
    layer = begin(nnq.FloatFunctional, module, path)
    add_output(layer, module)
    process = module.activation_post_process
    layer.attributes["activation_post_process"] = copy.deepcopy(process, empty_containers(process))
    return layer


def describe_fx_functional(module: Any, path: str, context: Context) -> Layer:
    """Describe ``nnq.FXFloatFunctional``, float already, as the class a user would have written."""
    return begin(nnq.FloatFunctional, module, path)


RULES: dict[type[nn.Module], Rule] = {
    nnq.QFunctional: Rule(describe_qfunctional, "torch.ao.nn.quantized.FloatFunctional"),
    nnq.FXFloatFunctional: Rule(describe_fx_functional, "torch.ao.nn.quantized.FloatFunctional"),
}
