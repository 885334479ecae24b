"""The order in which a model runs its modules, by symbolic tracing: what follows each layer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.ao.nn.quantized as nnq
from torch import fx, nn
from torch.ao.quantization import DeQuantStub, FakeQuantizeBase, QuantStub

from qdeq.errors import QdeqValueError, expected
from qdeq.grids.modules import PostProcess
from qdeq.sources.eager.mappings import float_class, owned_activation
from qdeq.sources.eager.recognise import is_quantized_module
from qdeq.tree.walk import every_module, is_half_made, own_tensors
from qdeq.words import class_name, error_line

__all__ = ["Activation", "activation_name", "activations_behind", "light_copy"]

_ACTIVATIONS = frozenset(
    {nn.ReLU6, nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish}
    | {nn.Hardsigmoid, nn.Hardtanh, nn.PReLU, nn.Softplus, nn.SELU}
)
_FUNCTIONS = {"relu": "ReLU", "relu_": "ReLU", "relu6": "ReLU6", "leaky_relu": "LeakyReLU", "tanh": "Tanh"} | {
    name.lower(): name for name in ("Sigmoid", "ELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid")
}
# Modules that leave an activation what it is, but for rounding.
_TRANSPARENT = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.modules.batchnorm._BatchNorm),
    *(QuantStub, DeQuantStub, nnq.Quantize, nnq.DeQuantize, FakeQuantizeBase, PostProcess),
)


def light_copy(model: nn.Module) -> nn.Module:
    """Copy a model to run or trace it: parameters and quantized modules are shared, buffers and flags are not.

    Quantized modules keep no state that running changes, and copying a packed weight may lose it. Those that torch.load
    left half made are completed.

    Raises:
        QdeqValueError: something in it cannot be copied.

    """
    memo: dict[int, Any] = {}
    for _, module in every_module(model):
        memo |= {id(value): value for _, value in own_tensors(module) if isinstance(value, nn.Parameter)}
        if is_half_made(module):
            memo[id(module)] = _completed(module)
        elif is_quantized_module(module):
            memo[id(module)] = module
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        what, got = "float parts that copy.deepcopy can copy", error_line(error)
        remedy = "Take out what cannot be copied; the weights in a file of it are read without it: qdeq.open(path)."
        raise QdeqValueError(expected(class_name(model), what, got, remedy)) from error


def _completed(module: nn.Module) -> nn.Module:
    whole = type(module).__new__(type(module))
    nn.Module.__init__(whole)
    whole.__dict__.update(vars(module))
    return whole


@dataclass(frozen=True)
class Activation:
    """An activation behind a layer: its class name, and the module that applies it (empty for a function)."""

    name: str
    path: str


def activation_name(module: nn.Module) -> str:
    """Class name, among torch.nn's, of an activation module; empty for every other module."""
    kind = float_class(type(module))
    return kind.__name__ if kind in _ACTIVATIONS else ""


def activations_behind(graph: fx.Graph, model: nn.Module, path: str) -> list[Activation] | None:
    """Return the activations that the output of the layer at ``path`` runs through; None if it is not run."""
    found = []
    module = model.get_submodule(path)
    own = owned_activation(module)
    if own is not None:
        found.append(Activation(own.__name__, path))
    node = next((node for node in graph.nodes if node.op == "call_module" and node.target == path), None)
    if node is None:
        return None
    while len(node.users) == 1:
        (node,) = node.users
        activation = _activation_of(node, model)
        if activation is not None:
            found.append(activation)
        elif not _is_transparent(node, model):
            break
    return found


def _activation_of(node: fx.Node, model: nn.Module) -> Activation | None:
    if node.op == "call_module":
        name = activation_name(model.get_submodule(str(node.target)))
        return Activation(name, str(node.target)) if name else None
    if node.op in ("call_function", "call_method"):
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return Activation(_FUNCTIONS[name], "") if name in _FUNCTIONS else None
    return None


def _is_transparent(node: fx.Node, model: nn.Module) -> bool:
    if node.op != "call_module":
        return node.op == "call_method" and node.target in ("contiguous", "dequantize")
    return isinstance(model.get_submodule(str(node.target)), _TRANSPARENT)
