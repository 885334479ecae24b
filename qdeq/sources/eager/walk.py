"""Finds every quantized module of a model and describes it, or says of all that cannot be described why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from qdeq.layers.layer import Layer, unreadable
from qdeq.report import Report, Unconverted
from qdeq.sources.eager.describe import BIAS, Context, Rule
from qdeq.sources.eager.mappings import find_rule
from qdeq.sources.eager.recognise import is_quantized_module, quantized_sources
from qdeq.sources.form import Description, Options
from qdeq.tree.walk import children, every_module, own_tensors, plain_values
from qdeq.weights.packed import is_packed_weight, packed_bias
from qdeq.words import class_name, join

__all__ = ["Found", "describe_all", "describe_layers", "find_layers", "find_quantized"]

Found: TypeAlias = tuple[str, nn.Module, nn.Module, Rule | None]


def describe_all(model: nn.Module, options: Options, report: Report) -> Description:
    """Describe every known quantized module once; collect everything that cannot be described."""
    return describe_layers(find_quantized(model), Context(report, options.recover_direct_conv))


def describe_layers(layers: list[Found], context: Context) -> Description:
    """Describe what was found; collect everything that cannot be described."""
    found = Description()
    for path, module, _, rule in layers:
        if rule is None:
            reason = "no builder is registered for this class"
            found.unknown.append(Unconverted(path, class_name(module), reason))
            continue
        try:
            layer = rule.describe(module, path, context)
            layer.activation = layer.activation or rule.activation
            layer.holds = _holds(layer, module)
            found.layers.append(layer)
        except Exception as error:  # noqa: BLE001 (a broken module may raise anything, and all are named at once)
            found.failures[path] = unreadable(path, class_name(module), error)
    return found


def find_quantized(model: nn.Module) -> list[Found]:
    """:func:`find_layers` for converted models."""
    return find_layers(model, find_rule, is_quantized_module)


def find_layers(
    model: nn.Module, rule_of: Callable[[type[nn.Module]], Rule | None], is_layer: Callable[[nn.Module], bool]
) -> list[Found]:
    """(path, module, parent, its rule) once per layer that is to be rebuilt; registered ones first, then attributes.

    Does not enter modules that can be described or are layers themselves.
    """
    found: list[Found] = []
    seen: set[int] = set()
    entered: list[tuple[str, nn.Module]] = []

    def visit(path: str, module: nn.Module, parent: nn.Module) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        rule = rule_of(type(module))
        if rule is not None or is_layer(module):
            found.append((path, module, parent, rule))
            return
        entered.append((path, module))
        for name, child in children(module):
            visit(join(path, name), child, module)

    visit("", model, model)
    for path, module in entered:  # grows while it runs
        for name, value in plain_values(module):
            if isinstance(value, nn.Module):
                visit(join(path, name), value, module)
    return found


def _holds(layer: Layer, module: nn.Module) -> list[str]:
    """Names of what a module holds: tensors, packed weights and their biases, output scales."""
    read = layer.accounted()
    names = []
    for prefix, part in every_module(module):
        at = join(layer.path, prefix) if prefix else layer.path
        for name, value in quantized_sources(part):
            names.append(join(at, name))
            bias = join(at, name) + BIAS
            if bias not in read and is_packed_weight(value) and packed_bias(value) is not None:
                names.append(bias)
        names += [join(at, name) for name, value in own_tensors(part) if not value.is_quantized]
        if hasattr(part, "scale") and hasattr(part, "zero_point"):
            names += [join(at, "scale"), join(at, "zero_point")]
    return list(dict.fromkeys(names))
