"""Reads a converted ``GraphModule`` as a :class:`Program`: its nodes, where each came from, what it holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from qdeq.sources.eager.recognise import is_quantized_module
from qdeq.sources.graph.program import Program
from qdeq.sources.graph.schema import operator_of
from qdeq.sources.graph.table import ACTIVATIONS
from qdeq.sources.graph.targets import is_dequantize, quantizing
from qdeq.tree.walk import children, every_module, own_tensors

__all__ = ["converted_graphs", "graph_calls", "program_of", "unfused"]

# What torch calls the packed weight of a function: the path of its module with underscores for dots, and a number.
_PACKED_NAME = re.compile(r"_?packed_weight_\d+$")
_FRAME = re.compile(
    r'^\s*File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>\S+)\n\s*(?P<code>.*)$', re.MULTILINE
)
_TORCH = str(Path(torch.__file__).parent)


def converted_graphs(model: nn.Module) -> list[tuple[str, fx.GraphModule]]:
    """Dotted path and module of every graph in a model that runs something quantized, once each, outer ones first."""
    graphs = [(path, module) for path, module in every_module(model) if isinstance(module, fx.GraphModule)]
    return [(path, module) for path, module in graphs if _is_converted(module)]


def graph_calls(model: nn.Module) -> set[int]:
    """Ids of the modules of a model that its converted graphs call, and nothing else holds."""
    called = {
        id(unfused(module.get_submodule(str(node.target))))
        for _, module in converted_graphs(model)
        for node in module.graph.nodes
        if node.op == "call_module"
    }
    graphs = {id(module) for _, module in converted_graphs(model)}
    elsewhere = {
        id(child)
        for _, owner in every_module(model)
        if id(owner) not in graphs and type(owner) is not nn.Module and unfused(owner) is owner
        for _, child in children(owner)
    }
    return called - elsewhere


def _is_converted(module: fx.GraphModule) -> bool:
    modules = dict(every_module(module))
    if any(part is not module and is_quantized_module(part) for part in modules.values()):
        return True
    return any(_is_quantized_call(node) for node in module.graph.nodes)


def _is_quantized_call(node: fx.Node) -> bool:
    if node.op != "call_function":
        return is_dequantize(node)
    return operator_of(node.target).startswith("quantized::") or quantizing(node) is not None


def program_of(module: fx.GraphModule, *, unfuse: bool = True) -> Program:
    """Read a graph module, which stays as it is; with ``unfuse`` fused modules become a layer and functions."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].name = node.name
        copies[node].meta = {**node.meta, "path": _path(node, module), "where": _where(node)}
    program = Program(graph, training=module.training)
    for node in list(graph.nodes):
        target = str(node.target)
        if node.op == "get_attr":
            program.attributes[target] = _attribute(module, target)
        elif node.op == "call_module":
            called = module.get_submodule(target)
            program.modules[target] = unfused(called) if unfuse else called
            if called is not program.modules[target]:
                _unfuse(node, called)
    for name, tensor in _others(module, program):
        program.attributes[name] = tensor
    return program


def unfused(module: nn.Module) -> nn.Module:
    """The layer in a fused module of layers that are float outside, as reference graphs have them; any other itself."""
    if not isinstance(module, _FusedModule) or isinstance(module[0], _FusedModule):
        return module
    known = [type(part) in ACTIVATIONS for part in list(module)[1:]]
    return module[0] if all(known) else module


def _unfuse(node: fx.Node, module: Any) -> None:
    """Let the node call the layer alone, and functions do the rest."""
    graph, value = node.graph, node
    users = list(node.users)
    first, *added = node.args
    node.args = (first,)
    with graph.inserting_after(node):
        for other in added:
            value = graph.call_function(torch.add, (value, other))
    applied = [part for part in list(module)[1:] if type(part) in ACTIVATIONS]
    applied += [module.relu] if isinstance(getattr(module, "relu", None), nn.ReLU) else []
    for part in applied:
        with graph.inserting_after(value):
            slope: dict[str, Any] = {"negative_slope": part.negative_slope} if type(part) is nn.LeakyReLU else {}
            value = graph.call_function(ACTIVATIONS[type(part)], (value,), slope)
    for user in users:
        user.replace_input_with(node, value)


def _attribute(module: nn.Module, target: str) -> Any:
    value: Any = module
    for name in target.split("."):
        value = getattr(value, name)
    return value


def _others(module: fx.GraphModule, program: Program) -> list[tuple[str, torch.Tensor]]:
    """Tensors that the graph's own containers hold and no node asks for."""
    containers = [(path, part) for path, part in every_module(module) if part is module or type(part) is nn.Module]
    names = [
        (f"{path}.{name}" if path else name, tensor) for path, part in containers for name, tensor in own_tensors(part)
    ]
    return [(name, tensor) for name, tensor in names if name not in program.attributes]


def _path(node: fx.Node, module: nn.Module) -> str:
    """Dotted path of the module that ran a node.

    Copies keep it in the node, files do not: then the name of a packed weight tells, with underscores for dots.
    """
    stack = node.meta.get("nn_module_stack")
    if stack:
        entry = next(reversed(stack.values()))
        return str(entry[0] if isinstance(entry, tuple) else next(reversed(stack)))
    held = next(
        (arg for arg in node.all_input_nodes if arg.op == "get_attr" and _PACKED_NAME.search(str(arg.target))), None
    )
    if held is None or node.op != "call_function":
        return ""
    return _PACKED_NAME.sub("", str(held.target))


def _where(node: fx.Node) -> str:
    """How errors call a node: its name, and the line of the user's code that it came from where that is known."""
    frames = [frame for frame in _FRAME.finditer(node.stack_trace or "") if not frame["file"].startswith(_TORCH)]
    if not frames:
        return f"node {node.name}"
    frame = frames[-1]
    return f"node {node.name} ({frame['code'].strip()}, {Path(frame['file']).name} line {frame['line']})"
