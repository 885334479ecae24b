"""Builds the float graph of a quantized one, anew: nothing is edited in place, and no packed weight comes along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from qdeq.errors import QdeqValueError, expected
from qdeq.report import DroppedSource
from qdeq.sources.graph.grids import State
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.program import Program
from qdeq.sources.graph.schema import operator_of
from qdeq.sources.graph.targets import operation_name
from qdeq.sources.graph.translate import Translator
from qdeq.words import class_name, join

__all__ = ["Emitted", "emit"]


@dataclass(frozen=True, eq=False)
class Emitted:
    """A float graph, and the grids of what the quantized one returns: None for floats."""

    module: fx.GraphModule
    returns: State


def emit(program: Program, given: Materials) -> Emitted:
    """Build the float graph of a program, which stays as it is.

    Raises:
        QdeqValueError: operations of the graph have no meaning on floats; all are named.

    """
    translator = Translator(program, given)
    translate = {
        "placeholder": translator.placeholder,
        "get_attr": translator.attribute,
        "call_function": translator.function,
        "call_method": translator.method,
        "call_module": translator.module,
        "output": translator.output,
    }
    returned: Any = None
    for node in program.graph.nodes:
        translate[node.op](node)
        if node.op == "output":
            returned = translator.grids.get(node.args[0])
    if translator.problems:
        remedy = "Write the model with operations of torch's own there, or leave these parts float."
        what = "operations that mean the same on floats"
        raise QdeqValueError(expected(given.prefix or "model", what, "; ".join(translator.problems), remedy))
    return Emitted(_finish(program, given, translator), returned)


def _finish(program: Program, given: Materials, translator: Translator) -> fx.GraphModule:
    graph, root = translator.graph, translator.root | translator.grids.modules
    graph.eliminate_dead_code(lambda node: _is_impure(node, root))
    kept = {str(node.target) for node in graph.nodes if node.op in ("get_attr", "call_module")}
    _drop_rest(program, given, kept)
    made = {id(value) for value in (*(part.module for part in given.layers.values()), *given.parameters.values())}
    made |= {id(module) for module in translator.grids.modules.values()}
    parts = {name: root[name] if id(root[name]) in made else given.copy(root[name]) for name in root if name in kept}
    module = fx.GraphModule(parts, graph)
    graph.lint()
    for part in module.modules():
        if type(part) is nn.Module or part is module:  # only holds others
            part.training = program.training
    for name, part in parts.items():
        if id(root[name]) in made and isinstance(part, nn.Module):
            part.train(program.training)
    for layer in {id(part): part for name, part in given.layers.items() if name in kept}.values():
        given.report.replaced[layer.layer.path] = (layer.layer.source_class, class_name(layer.module))
    return module


def _is_impure(node: fx.Node, root: dict[str, Any]) -> bool:
    """Whether a node does something beside giving its value: dead code of that kind stays."""
    if node.op == "call_module":
        return bool(getattr(root[str(node.target)], "inplace", False))
    # fx knows that an operator writes into its argument only where it has one overload.
    name = operation_name(node) if node.op == "call_method" or operator_of(node.target) else ""
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or bool(node.kwargs.get("inplace")) or node.is_impure()


def _drop_rest(program: Program, given: Materials, kept: set[str]) -> None:
    """Name every tensor of the source that has no place in the float graph."""
    used = {str(node.target) for node in program.graph.nodes if node.op == "get_attr" and node.users}
    for name, value in program.attributes.items():
        if name not in kept and isinstance(value, Tensor) and not value.is_quantized:
            reason = "quantization of values, which are floats now" if name in used else "the graph does not use it"
            number = value.item() if value.numel() == 1 else None
            given.report.dropped.append(DroppedSource(join(given.prefix, name), reason, number))
