"""The operators of a graph that have packed weights -> layers, each under a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from qdeq.errors import QdeqError, refuse
from qdeq.grids.grid import Output
from qdeq.layers.layer import Activation, Layer, Role, Source, unreadable
from qdeq.layers.make import Made
from qdeq.sources.eager.describe import BIAS, note_zero_bias
from qdeq.sources.form import Description
from qdeq.sources.graph.packed import shape_of, take_apart
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.graph.recurrent import CELLS, NETWORKS, describe_cell, describe_network, network_call
from qdeq.sources.graph.schema import Call, operator_of, read_call
from qdeq.sources.graph.table import PACKED, PackedOperator
from qdeq.words import join

__all__ = ["Site", "describe_operators", "operator_sites", "takes_quantized"]

_MODES = ("sum", "mean", "max")
_OPERATORS = {**PACKED, **CELLS, **NETWORKS}


@dataclass(frozen=True)
class Site:
    """A node that becomes the call of a float module.

    Attributes:
        path: of its layer, in the graph.
        call: the quantized call.
        operator: what is known of its operator.
        targets: names under which the graph holds its packed weights.

    """

    path: str
    call: Call
    operator: PackedOperator
    targets: tuple[str, ...]

    @property
    def activation(self) -> Activation | None:
        """What the operator applies after the layer; two calls of one layer may differ in it."""
        if self.operator.activation is None:
            return None
        args = {name: value for name, value in self.call.arguments.items() if name == "negative_slope"}
        return Activation(self.operator.activation, nn.Module, args=args)


def operator_sites(program: Program) -> dict[fx.Node, Site]:
    """Each node whose operator has a packed weight, in the graph's order; several may call one layer.

    A layer is named after the module that ran the operator, where it ran no other and holds nothing else of that
    name; after the node otherwise.
    """
    found = dict(_calls(program))
    names = _Names(program, {(str(node.meta.get("path", "")), targets) for node, (_, targets) in found.items()})
    paths: dict[Any, str] = {}
    sites = {}
    for node, (call, targets) in found.items():
        operator = _OPERATORS[call.name]
        same = targets, operator.kind, str(_settings(call))
        if same not in paths:
            paths[same] = names.take(node)
        sites[node] = Site(paths[same], call, operator, targets)
    return sites


def _calls(program: Program) -> Iterator[tuple[fx.Node, tuple[Call, tuple[str, ...]]]]:
    for node in program.graph.nodes:
        if node.op == "call_function" and operator_of(node.target).startswith("quantized::"):
            call = read_call(node.target, node.args, node.kwargs)
        elif node.op == "call_function":
            call = network_call(node)
        else:
            continue
        if call is not None and call.name in _OPERATORS and all(isinstance(p, fx.Node) for p in call.packed):
            yield node, (call, tuple(str(packed.target) for packed in call.packed))


def _settings(call: Call) -> dict[str, Any]:
    """What of a call goes into the float module."""
    values = call.arguments
    return {name: value for name, value in values.items() if name in ("mode", "include_last_offset")}


class _Names:
    """Gives out dotted names that nothing else in the graph has."""

    def __init__(self, program: Program, found: set[tuple[str, tuple[str, ...]]]) -> None:
        paths = Counter(path for path, _ in found)
        self._crowded = {path for path, times in paths.items() if times > 1}
        targets = (node for node in program.graph.nodes if node.op in ("get_attr", "call_module"))
        self._taken = {str(node.target) for node in targets}

    def take(self, node: fx.Node) -> str:
        path = str(node.meta.get("path", ""))
        name = path if path and path not in self._crowded and self._is_free(path) else join(path, node.name)
        number, unique = 1, name
        while not self._is_free(unique):
            unique, number = f"{name}_{number}", number + 1
        self._taken.add(unique)
        return unique

    def _is_free(self, name: str) -> bool:
        return self._taken.isdisjoint((name, join(name, "weight"), join(name, "bias")))


def takes_quantized(node: fx.Node, sites: Mapping[fx.Node, Site], layers: Mapping[str, Made]) -> bool:
    """Whether a node works on quantized values alone; ``layers`` are those of ``call_module`` targets."""
    if node in sites:
        return not sites[node].operator.dynamic and sites[node].call.qparams is not None
    if node.op == "call_module":
        layer = layers[str(node.target)].layer if str(node.target) in layers else None
        return layer is not None and layer.role is Role.LAYER and layer.output is not None
    return node.op == "call_function" and operator_of(node.target).startswith("quantized::")


def describe_operators(program: Program, prefix: str, *, recover_direct_conv: bool = False) -> Description:
    """Describe every layer that an operator of the graph is; ``prefix`` is the dotted path of the graph's module."""
    found, done = Description(), set()
    for node, site in operator_sites(program).items():
        if site.path in done:
            continue
        done.add(site.path)
        path, source_class = join(prefix, site.path), operator_of(node.target)
        try:
            values = [program.attributes[target] for target in site.targets]
            apart = [
                take_apart(
                    value, join(prefix, target), half=site.operator.half, recover_direct_conv=recover_direct_conv
                )
                for value, target in zip(values, site.targets, strict=True)
            ]
            layer = Layer(path, source_class, site.operator.kind)
            if site.call.name in NETWORKS or site.call.name in CELLS:
                (describe_network if site.call.name in NETWORKS else describe_cell)(layer, site.call, apart)
            else:
                _describe(layer, site, apart[0], program)
            found.layers.append(layer)
        except Exception as error:  # noqa: BLE001 (a broken packed weight may raise anything, and all are named at once)
            found.failures[path] = _at(node, unreadable(path, source_class, error))
    return found


def _at(node: fx.Node, error: QdeqError) -> QdeqError:
    where = node.meta.get("where", node.name)
    return type(error)(f"{where}: {error}")


def _describe(layer: Layer, site: Site, packed: Packed, program: Program) -> None:
    shape = shape_of(packed)
    layer.args.update(_ARGUMENTS[site.operator.kind](packed, site.call, shape))
    layer.add("weight", Source(join(layer.path, "weight"), packed.weight, packed.held))
    layer.holds.append(packed.held)
    if packed.bias is not None:
        bias = Source(join(layer.path, "bias"), packed.bias, packed.held + BIAS)
        layer.add("bias", bias)
        layer.holds.append(packed.held + BIAS)
        note_zero_bias(layer, bias)
    if site.operator.dynamic:
        layer.role = Role.DYNAMIC
    layer.activation = site.activation
    if site.call.qparams is not None:
        scale, zero_point = (program.number(value) for value in site.call.qparams)
        if scale is not None and zero_point is not None:
            first = packed.engine == "onednn"
            layer.output = Output(float(scale), int(zero_point), zero_point_first=first, engine=packed.engine)
    mode = layer.args.get("mode", "sum")
    if mode != "sum":
        layer.notes.append(f"quantized EmbeddingBag sums in every mode; the float one takes the {mode}")


def _linear(packed: Packed, call: Call, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"in_features": shape[1], "out_features": shape[0], "bias": packed.bias is not None}


def _conv(dimensions: int) -> Callable[[Packed, Call, tuple[int, ...]], dict[str, Any]]:
    def arguments(packed: Packed, call: Call, shape: tuple[int, ...]) -> dict[str, Any]:
        first, second = shape[0], shape[1] * packed.groups
        taken, given = (first, second) if packed.transpose else (second, first)
        return {
            "in_channels": taken,
            "out_channels": given,
            "kernel_size": shape[-dimensions:],
            "stride": tuple(packed.stride)[-dimensions:],
            "padding": tuple(packed.padding)[-dimensions:],
            "dilation": tuple(packed.dilation)[-dimensions:],
            "groups": packed.groups,
            "bias": packed.bias is not None,
            **({"output_padding": tuple(packed.output_padding)[-dimensions:]} if packed.transpose else {}),
        }

    return arguments


def _embedding(packed: Packed, call: Call, shape: tuple[int, ...]) -> dict[str, Any]:
    if call.arguments.get("pruned_weights") or call.arguments.get("compressed_indices_mapping") is not None:
        remedy = "Expand the pruned rows, then convert the model again."
        refuse(packed.held, "an embedding with all its rows", "one with pruned weights", remedy)
    return {"num_embeddings": shape[0], "embedding_dim": shape[1]}


def _embedding_bag(packed: Packed, call: Call, shape: tuple[int, ...]) -> dict[str, Any]:
    settings = {"mode": _MODES[call.arguments["mode"]], "include_last_offset": call.arguments["include_last_offset"]}
    return _embedding(packed, call, shape) | settings


_ARGUMENTS: dict[type[nn.Module], Callable[[Packed, Call, tuple[int, ...]], dict[str, Any]]] = {
    nn.Linear: _linear,
    **{getattr(nn, f"{kind}{n}d"): _conv(n) for kind in ("Conv", "ConvTranspose") for n in (1, 2, 3)},
    nn.Embedding: _embedding,
    nn.EmbeddingBag: _embedding_bag,
}
