"""Weights that a graph quantizes at every call, or holds as quantized tensors -> float parameters of the same names."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.layers.layer import Later, Layer, Source
from qdeq.sources.graph.program import Program
from qdeq.sources.graph.targets import QUANTIZE, QUANTIZE_CHANNELS, is_dequantize, is_half, quantizing, takes_as_weight
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import join

__all__ = ["Parameters", "describe_parameters", "parameter_targets"]


class Parameters(nn.Module):
    """Holds parameters without a layer around them.

    Args:
        shapes: (name, shape) of each.
        device: of the parameters.

    """

    def __init__(self, shapes: tuple[tuple[str, tuple[int, ...]], ...], device: Any = None) -> None:
        super().__init__()
        for name, shape in shapes:
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device)))


def parameter_targets(program: Program) -> dict[fx.Node, str]:
    """Each node whose value becomes a float parameter -> the dotted name of the attribute that it is made from.

    These are quantized tensors, weights that are quantized per channel, and those quantized per tensor or cast to
    float16 for a layer's function. Other parameters that are quantized per tensor are activations to the int8 model:
    they stay as they are.
    """
    found = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            value = program.attributes.get(str(node.target))
            if isinstance(value, QuantizedWeight) or (isinstance(value, Tensor) and value.is_quantized):
                found[node] = str(node.target)
            continue
        name, given = quantizing(node) or ("", {})
        source = node.args[0] if is_half(node) else given.get("input")
        if not isinstance(source, fx.Node) or source.op != "get_attr":
            continue
        if name == QUANTIZE_CHANNELS or ((name == QUANTIZE or is_half(node)) and _is_weight(node)):
            found[node] = str(source.target)
    return found


def _is_weight(node: fx.Node) -> bool:
    """Whether a quantized value is nothing but the weight of layers' functions."""
    weights = [user for user in node.users if is_dequantize(user)]
    uses = [(user, weight) for weight in weights for user in weight.users]
    return len(weights) == len(node.users) and bool(uses) and all(takes_as_weight(*use) for use in uses)


def describe_parameters(program: Program, prefix: str) -> list[Layer]:
    """One layer for all such parameters of one owner, named as the owner is."""
    values: dict[str, dict[str, tuple[Any, tuple[int, ...]]]] = {}
    for node, target in parameter_targets(program).items():
        owner, _, name = target.rpartition(".")
        value: Any = program.attributes[target]
        shape = tuple(value.shape)
        if node.op != "get_attr":
            value = Later(functools.partial(_quantized, node, program))
        values.setdefault(owner, {})[name] = value, shape
    layers = []
    for owner, parts in values.items():
        path = join(prefix, owner) if owner else prefix
        shapes = tuple((name, shape) for name, (_, shape) in parts.items())
        layer = Layer(path, "torch.nn.Parameter", Parameters, {"shapes": shapes})
        for name, (value, _) in parts.items():
            layer.add(name, Source(join(path, name), value))
            layer.holds.append(join(path, name))
        layers.append(layer)
    return layers


def _quantized(node: fx.Node, program: Program) -> Tensor:
    """The value of a node that quantizes an attribute."""

    def value(argument: Any) -> Any:
        return program.attributes[str(argument.target)] if isinstance(argument, fx.Node) else argument

    args: Any = fx.map_arg(node.args, value)
    kwargs: Any = fx.map_arg(node.kwargs, value)
    with torch.no_grad():
        result: Tensor = args[0].half() if is_half(node) else node.target(*args, **kwargs)  # type: ignore[operator]
    return result
