"""Translates the nodes of a quantized graph one by one into nodes of a float graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from qdeq.grids.grid import Output
from qdeq.grids.rules import Site as Rounding
from qdeq.layers.layer import Activation, Role
from qdeq.layers.make import Made
from qdeq.sources.graph.grids import Grids, State
from qdeq.sources.graph.layers import Site, operator_sites, takes_quantized
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.parameters import parameter_targets
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.graph.recurrent import flat_lstm
from qdeq.sources.graph.schema import operator_of, read_call
from qdeq.sources.graph.table import ACTIVATIONS, IGNORES_SCALE, float_function
from qdeq.sources.graph.targets import (
    QUANTIZE,
    dtype_of,
    is_dequantize,
    is_half,
    operation_name,
    quantizing,
    why_not_on_floats,
)
from qdeq.tree.walk import is_library_module
from qdeq.words import class_name, join

__all__ = ["Translator"]

_KEPT_META = ("nn_module_stack", "stack_trace")
_NOT_FIXED = "its input is quantized anew at every call, with no fixed scale"
_HALF = "rounding to float16 is not imitated"
# What torch's quantized layers of these kinds give.
_CHANNELS_LAST = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_COMPUTED = "the graph computes its scale"
_REGISTERED = "a registered builder made it, and says nothing of how its output is rounded"


class Translator:
    """Builds a graph node by node.

    Attributes:
        graph: what was built so far.
        root: dotted name -> module or tensor, of the source or made, that the graph calls for.
        grids: of the values in the source.
        problems: operations without a meaning on floats, each in words.

    """

    def __init__(self, program: Program, given: Materials) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.problems: list[str] = []
        self._program, self._given = program, given
        self._sites, self._parameters = operator_sites(program), parameter_targets(program)
        self._new: dict[fx.Node, Any] = {}
        names = {str(node.target) for node in program.graph.nodes if isinstance(node.target, str)}
        names.update(site.path for site in self._sites.values())
        self.grids = Grids(self.graph, given.mode, given.report, names)

    def placeholder(self, node: fx.Node) -> None:
        """An input: the int8 model takes it quantized where an operation takes it as it comes."""
        # An annotation that is text, as postponed ones are, would keep the result from being scripted.
        annotation = None if isinstance(node.type, str) else node.type
        created = self.graph.create_node("placeholder", str(node.target), node.args, {}, node.name, annotation)
        taken_quantized = any(takes_quantized(user, self._sites, self._given.layers) for user in node.users)
        if taken_quantized:
            self._given.report.note(
                self._given.prefix, f"the int8 graph takes its input {node.name} quantized; floats now"
            )
        self._set(node, created, self.grids.given() if taken_quantized else None)

    def output(self, node: fx.Node) -> None:
        """The result, which may be quantized in the int8 model."""
        # Its type annotation is the code's, which torch keeps where it cut the code: googlenet's is wrong.
        self.graph.output(self._mapped(node.args[0]))
        if self.grids.quantized(node.args):
            self._given.report.note(self._given.prefix, "the int8 graph returns quantized values; floats now")
        self.grids.finish(node.args)

    def attribute(self, node: fx.Node) -> None:
        """A tensor; a scale or zero point, which nothing will use; a packed weight, which its operator takes apart."""
        target = str(node.target)
        value = self._program.attributes.get(target)
        if node in self._parameters:
            self._parameter(node)
        elif isinstance(value, Packed | torch.ScriptObject):
            self._set(node, None)
        elif isinstance(value, Tensor):
            self.root[target] = value
            self._set(node, self._create(node, "get_attr", target, (), {}))
        else:
            self._set(node, value)

    def function(self, node: fx.Node) -> None:
        """A call of a function."""
        if node in self._parameters:
            self._parameter(node)
        elif node in self._sites:
            self._layer(node, self._sites[node])
        elif quantizing(node):
            self._quantize(node)
        elif is_dequantize(node):
            self._dequantize(node)
        elif operator_of(node.target).startswith("quantized::"):
            self._quantized(node)
        else:
            self._float(node)

    def method(self, node: fx.Node) -> None:
        """A call of a method."""
        if node in self._parameters:
            self._parameter(node)
        elif is_half(node):
            self.grids.leave(self._path(node), "to", _HALF)
            self._set(node, self._mapped(node.args[0]))
        elif is_dequantize(node):
            self._dequantize(node)
        else:
            self._float(node)

    def module(self, node: fx.Node) -> None:
        """A call of a module: a layer, another graph, or a float module."""
        target = str(node.target)
        if target in self._given.layers:
            self._module_layer(node, self._given.layers[target])
            return
        module = self._program.modules[target]
        self.root[target] = module
        created = self._create(node, "call_module", target, node.args, node.kwargs)
        if target in self._given.returns:
            self._set(node, created, self._given.returns[target])
        elif is_library_module(module) and not isinstance(module, nn.Sequential):
            self._operate(node, created, type(module).__name__, node.args)
        else:
            what = f"{class_name(module)}.forward"
            unknown = self.grids.unknown(join(self._given.prefix, target), what)
            self._set(node, created, unknown if self.grids.quantized(node.args) else None)

    def _layer(self, node: fx.Node, site: Site) -> None:
        """An operator with a packed weight: a call of its float module."""
        made, known, arguments = self._given.layers[site.path], site.operator, site.call.arguments
        inputs = [arguments[name] for name in known.inputs]
        while inputs[-1] is None:
            inputs.pop()
        self.root[site.path] = made.module
        value: Any = self._create(node, "call_module", site.path, tuple(inputs), {})
        if known.added:
            value = self.graph.call_function(torch.add, (value, self._mapped(arguments[known.added])))
        value = self._activate(value, site.activation)
        if known.kind is nn.LSTM:
            value = flat_lstm(value)
        if known.kind in _CHANNELS_LAST:
            self.grids.convolved(node)
        if known.dynamic:
            self.grids.leave(made.layer.path, made.layer.source_class, _NOT_FIXED)
        if site.call.qparams is None:
            self._set(node, value)
        else:
            first = made.layer.output is not None and made.layer.output.zero_point_first
            self._round(node, value, site.call.qparams, node.args, zero_point_first=first)

    def _module_layer(self, node: fx.Node, made: Made) -> None:
        layer, target = made.layer, str(node.target)
        if layer.role in (Role.STUB, Role.QUANTIZE, Role.DEQUANTIZE):
            value = self._mapped(node.args[0])
            if layer.role is Role.STUB:
                self._set(node, value, self.grids.get(node.args[0]))
                return
        else:
            self.root[target] = made.module
            inputs, added = (node.args[:1], node.args[1:]) if layer.kind is nn.Conv2d else (node.args, ())
            value = self._create(node, "call_module", target, inputs, node.kwargs)
            for other in added:
                value = self.graph.call_function(torch.add, (value, self._mapped(other)))
            value = self._activate(value, layer.activation)
            if layer.kind in _CHANNELS_LAST:
                self.grids.convolved(node)
        if layer.role is Role.DYNAMIC:
            self.grids.leave(layer.path, layer.source_class, _NOT_FIXED)
        if layer.output is not None:
            value, state = self.grids.behind(value, layer.output, node.args)
            self._set(node, value, state)
        elif layer.role is not Role.LAYER:
            self._set(node, value)
        elif layer.made is not None:
            self.grids.leave(layer.path, layer.source_class, _REGISTERED)
            self._set(node, value, self.grids.unknown(layer.path, layer.source_class))
        else:
            self._operate(node, value, type(made.module).__name__, node.args)

    def _activate(self, value: fx.Node, activation: Activation | None) -> fx.Node:
        if activation is None:
            return value
        return self.graph.call_function(ACTIVATIONS[activation.kind], (value,), dict(activation.args))

    def _parameter(self, node: fx.Node) -> None:
        target = self._parameters[node]
        self.root[target] = self._given.parameters[target]
        self._set(node, self._create(node, "get_attr", target, (), {}), self.grids.given())

    def _quantize(self, node: fx.Node) -> None:
        name, given = quantizing(node) or ("", {})
        value = self._mapped(given["input"])
        if name == QUANTIZE:
            self._round(
                node, value, (given["scale"], given["zero_point"]), (), dtype_of(given["dtype"]), zero_point_first=True
            )
        else:
            self.grids.leave(self._path(node), f"torch.{name}", _NOT_FIXED)
            self._set(node, value, self.grids.given())

    def _dequantize(self, node: fx.Node) -> None:
        self.grids.finish(node.args)
        self._set(node, self._mapped(node.args[0]))

    def _quantized(self, node: fx.Node) -> None:
        """A quantized operator without a packed weight."""
        call = read_call(node.target, node.args, node.kwargs)
        found = None if call is None else float_function(call)
        if call is None or found is None:
            self._refuse(node, f"what {operator_of(node.target)} is on floats is not known")
            return
        (function, args, kwargs), relu = found
        value = self._create(node, "call_function", function, args, kwargs)
        own = None if call.name in IGNORES_SCALE else call.qparams
        if own is not None and self._program.number(own[0]) is not None:
            value = self.graph.call_function(F.relu, (value,)) if relu else value
            self._round(node, value, own, node.args)
            return
        self._operate(node, value, function.__name__, args)
        if relu:
            self._new[node] = self.graph.call_function(F.relu, (self._new[node],))

    def _float(self, node: fx.Node) -> None:
        """An operation of the float model, perhaps on quantized values."""
        quantized = self.grids.quantized((node.args, node.kwargs))
        why = why_not_on_floats(node) if quantized else ""
        if why:
            self._refuse(node, why)
            return
        created = self._create(node, node.op, node.target, node.args, node.kwargs)
        self._operate(node, created, operation_name(node), node.args)

    def _operate(self, node: fx.Node, value: fx.Node, name: str, args: Any) -> None:
        """Round a value as torch does an operation by itself on quantized values."""
        result = self.grids.operate(self._path(node), name, args, node.kwargs)
        if not isinstance(result, Rounding):
            self._set(node, value, result)
            return
        value, state = self.grids.at(node, value, result)
        self._set(node, value, state)

    def _round(
        self, node: fx.Node, value: fx.Node, qparams: Any, args: Any, dtype: str = "", *, zero_point_first: bool = False
    ) -> None:
        """Round a value to the scale and zero point that its operation states."""
        scale, zero_point = (self._program.number(number) for number in qparams)
        if scale is None or zero_point is None:
            self.grids.leave(self._path(node), operation_name(node), _COMPUTED)
            self._set(node, value, self.grids.given())
            return
        output = Output(float(scale), int(zero_point), dtype, zero_point_first)
        name = join(self._given.prefix, node.name)
        self._given.report.activation_qparams.setdefault(name, (output.scale, output.zero_point))
        # A node that does nothing but quantize is its rounding.
        value, state = self.grids.behind(value, output, args, "" if args else node.name)
        self._set(node, value, state)

    def _create(self, node: fx.Node, op: str, target: Any, args: Any, kwargs: Any) -> fx.Node:
        """A node of the new graph that has the name of one of the source; arguments are the source's."""
        args, kwargs = self._mapped(args), self._mapped(kwargs)
        created = self.graph.create_node(op, target, args, kwargs, node.name)
        created.meta.update({key: node.meta[key] for key in _KEPT_META if key in node.meta})
        return created

    def _mapped(self, value: Any) -> Any:
        return fx.map_arg(value, self._new.__getitem__)

    def _set(self, node: fx.Node, value: Any, state: State = None) -> None:
        self._new[node] = value
        self.grids.set(node, state)

    def _path(self, node: fx.Node) -> str:
        path = str(node.meta.get("path", ""))
        return join(self._given.prefix, path) if path else self._given.prefix

    def _refuse(self, node: fx.Node, why: str) -> None:
        self.problems.append(f"{node.meta.get('where', f'node {node.name}')}: {why}")
        self._set(node, None, self.grids.given())  # so that the next such operation is named, too
