"""Models with FX graphs, which ``convert_fx`` and ``convert_to_reference_fx`` give, whole or inside another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from qdeq.errors import refuse
from qdeq.layers.fused import ConvAdd2d, ConvAddReLU2d
from qdeq.layers.layer import Activation
from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.assemble import assemble
from qdeq.sources.eager.describe import Context
from qdeq.sources.eager.mappings import find_rule
from qdeq.sources.eager.recognise import is_observing, is_quantized_module
from qdeq.sources.eager.walk import Found, describe_layers, find_layers
from qdeq.sources.form import Description, Options
from qdeq.sources.fx.front import converted_graphs, graph_calls, program_of
from qdeq.sources.fx.rebuild import Graphs
from qdeq.sources.graph.layers import describe_operators
from qdeq.sources.graph.parameters import describe_parameters
from qdeq.tree.walk import every_module
from qdeq.words import class_name

__all__ = ["FX"]

# Layers that take a second input: in a graph the sum is a node of its own.
_SUMS: dict[Any, Activation | None] = {ConvAdd2d: None, ConvAddReLU2d: Activation(nn.ReLU, ConvAddReLU2d)}


class _Graphs:
    name = "a model with FX graphs"

    def recognise(self, model: object) -> bool:
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            return False
        return bool(converted_graphs(model))

    def describe(self, model: nn.Module, options: Options, report: Report) -> Description:
        if not options.partial:
            _refuse_half_converted(model)
        layers = _find(model)
        found = describe_layers(layers, Context(report, options.recover_direct_conv))
        called, modules = graph_calls(model), {path: module for path, module, _, _ in layers}
        for layer in found.layers:
            if layer.kind in _SUMS and id(modules[layer.path]) in called:
                layer.kind, layer.activation = nn.Conv2d, _SUMS[layer.kind]
        for path, module in converted_graphs(model):
            program = program_of(module)
            operators = describe_operators(program, path, recover_direct_conv=options.recover_direct_conv)
            found.layers += [*operators.layers, *describe_parameters(program, path)]
            found.failures |= operators.failures
        found.certain = True
        return found

    def rebuild(self, model: nn.Module, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        if options.unfold_bn:
            report.note("", "unfold_bn: a graph has no places that fusing emptied; batch norms stay in their layers")
        if options.weights != "master" or not options.fold_bn:
            report.note("", "weights and fold_bn are for prepared models; a converted one has its integers alone")
        found = _find(model)
        graphs = Graphs(model, made, found, options.activations, report)
        return assemble(model, graphs.eager, found, options, report, graphs)


def _find(model: nn.Module) -> list[Found]:
    """Every quantized module; a graph module that holds packed weights itself is none."""
    return find_layers(
        model, find_rule, lambda part: not isinstance(part, fx.GraphModule) and is_quantized_module(part)
    )


def _refuse_half_converted(model: nn.Module) -> None:
    observing = [f"{path} is {class_name(part)}" for path, part in every_module(model) if is_observing(part)]
    if observing:
        remedy = "Call convert_fx on it, or pass the prepared model for its float weights."
        refuse("model", "a converted model without observers", f"a half converted one: {'; '.join(observing)}", remedy)


FX = _Graphs()
