"""The order in which a model runs its modules, by symbolic tracing: what follows each layer."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from qdeq.sources.eager.recognise import is_quantized_module

__all__ = ["Activation", "activation_name", "activations_behind", "fused_activation", "light_copy", "trace"]

_ACTIVATIONS = (
    "ReLU6", "ReLU", "LeakyReLU", "Tanh", "Sigmoid", "ELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish",
    "Hardsigmoid", "Hardtanh", "PReLU", "Softplus", "SELU",
)  # fmt: skip
_FUNCTIONS = {"relu": "ReLU", "relu_": "ReLU", "relu6": "ReLU6", "leaky_relu": "LeakyReLU", "tanh": "Tanh"} | {
    name.lower(): name for name in ("Sigmoid", "ELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish", "Hardsigmoid")
}
_TRANSPARENT = ("Identity", "Dropout", "QuantStub", "DeQuantStub", "Quantize", "DeQuantize", "FakeQuantize")


_FUSED_ACTIVATIONS = {
    "ConvReLU": "ReLU",
    "LinearReLU": "ReLU",
    "LinearLeakyReLU": "LeakyReLU",
    "LinearTanh": "Tanh",
    "ConvAddReLU": "ReLU",
}


def fused_activation(module: nn.Module) -> str:
    """Class name of the activation that a fused (quantized, QAT or held) layer applies itself."""
    for cls in type(module).__mro__:
        name = cls.__name__.rstrip("123d")
        if name in ("ConvBnReLU", "BNReLU"):
            return "ReLU"
        if name in _FUSED_ACTIVATIONS:
            return _FUSED_ACTIVATIONS[name]
    return ""


def light_copy(model: nn.Module) -> nn.Module:
    """Copy a model to run or trace it: parameters and quantized modules are shared, buffers and flags are not.

    Quantized modules keep no state that running changes, and copying a packed weight may lose it.
    """
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    for module in model.modules():
        if is_quantized_module(module):
            memo[id(module)] = module
    return copy.deepcopy(model, memo)


@dataclass(frozen=True)
class Activation:
    """An activation behind a layer: its class name, and the module that applies it (empty for a function)."""

    name: str
    path: str


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m.__module__.startswith("qdeq.") or next(m.children(), None) is None or is_quantized_module(m):
            return True
        if isinstance(m, nn.Sequential):  # torch.ao's fused ConvReLU2d before conversion is one
            return False
        return super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph | None:
    """Return the graph of the modules and functions that a forward runs; None where it cannot be traced."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _Tracer().trace(light_copy(model))
    except Exception:  # noqa: BLE001 (the user's forward may raise anything; then the order is not known)
        return None


def activation_name(module: nn.Module) -> str:
    """Class name, among torch.nn's, of an activation module; empty for every other module."""
    name = type(module).__name__
    return name if name in _ACTIVATIONS else ""


def activations_behind(graph: fx.Graph, model: nn.Module, path: str) -> list[Activation] | None:
    """Return the activations that the output of the layer at ``path`` runs through; None if it is not run."""
    found = []
    module = model.get_submodule(path)
    own = fused_activation(module)
    if own:
        found.append(Activation(own, path))
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
    module = model.get_submodule(str(node.target))
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    ours = type(module).__module__.startswith("qdeq.grids")
    return norm or ours or type(module).__name__.rstrip("123d") in _TRANSPARENT
