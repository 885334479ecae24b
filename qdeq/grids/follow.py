"""Follows scales and zero points through the forwards of a rebuilt model, from operation to operation.

The int8 model's float-looking code (``F.avg_pool2d(x, 2)``, ``x.mean([2, 3])``, an ``nn.AvgPool2d``) works on quantized
tensors: torch computes it on integers and rounds the result to the grid of its input, or to one that the operation
prescribes. Which grid that is depends on what ran before. So each forward is traced with torch.fx, its children as
single calls, and the grids are followed through all forwards from the model's input on. Where an operation rounds, a
site is noted. What cannot be followed is named in ``report.uncovered``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from qdeq.grids.grid import Grid
from qdeq.grids.modules import FakeQuantize
from qdeq.grids.nodes import rounds_as_nodes
from qdeq.grids.rules import Call, Site, Unknown, grids_in, method, operate, report_unknown
from qdeq.report import Report
from qdeq.tree.graphs import own_graph
from qdeq.tree.post_process import CHILD
from qdeq.tree.tracing import Traces
from qdeq.tree.walk import children, is_library_module
from qdeq.words import class_name, join

__all__ = ["Owner", "Sites", "follow", "follow_rounded"]


@dataclass
class Owner:
    """A module whose forward was traced, and where that forward rounds."""

    path: str
    module: nn.Module
    graph: fx.Graph
    sites: dict[fx.Node, list[Site]] = field(default_factory=dict)


@dataclass
class Sites:
    """Where a model rounds.

    Attributes:
        owners: by id of a module: its traced forward, or why it cannot be traced.
        modules: by id of a module of torch's own: the module, and the grid of its output at each of its calls.
        inputs: by id of a layer: the grid of its input at each of its calls; None where it is not known.
        rounded: operations whose output a FakeQuantize rounds already.

    """

    owners: dict[int, Owner | str] = field(default_factory=dict)
    modules: dict[int, tuple[nn.Module, list[Site]]] = field(default_factory=dict)
    inputs: dict[int, list[Grid | None]] = field(default_factory=dict)
    rounded: list[Site] = field(default_factory=list)


def follow(model: nn.Module, dequantized: set[int], inner: set[int], report: Report) -> Sites:
    """Find every operation that torch rounds when it runs on quantized tensors.

    Args:
        model: rebuilt model whose converted outputs have their FakeQuantize.
        dequantized: ids of the modules that stand where the int8 model dequantizes.
        inner: ids of converted layers whose output is rounded by the module that took their activation.
        report: gets what could not be covered.

    """
    flow = _Flow(model, dequantized, inner, report)
    report_unknown(flow.call("", model, (), {}), report)
    return flow.sites


def follow_rounded(model: nn.Module, dequantized: set[int], layers: set[int]) -> Sites:
    """Find what is rounded, and from which grids, in a model that has all its roundings, graphs included.

    Args:
        model: the rebuilt model.
        dequantized: ids of the modules that stand where the int8 model dequantizes.
        layers: ids of the converted layers.

    """
    flow = _Flow(model, dequantized, set(), Report(), layers)  # what is unknown was named when it was rounded
    flow.call("", model, (), {})
    return flow.sites


class _Flow:
    def __init__(
        self, model: nn.Module, dequantized: set[int], inner: set[int], report: Report, layers: set[int] | None = None
    ) -> None:
        self.dequantized = dequantized
        self.inner = inner
        self.report = report
        self.layers = layers
        self.sites = Sites()
        self.traces = Traces(model)

    def call(
        self, path: str, module: nn.Module, args: Any, kwargs: Any, behind: tuple[FakeQuantize, bool] | None = None
    ) -> Any:
        """The grids of what ``module`` returns, for inputs with the grids ``args``: None means not quantized.

        A graph has what rounds the output of a module behind it, as another module.
        """
        quantizer = _quantizer(module)
        called = Call(path, type(module).__name__, module.forward, args, kwargs)
        if self.layers is not None:
            self._note(called, module, quantizer)
        if quantizer is not None:
            if not _only_rounds(module):
                report_unknown((args, kwargs), self.report)
            return _grid(quantizer)
        if id(module) in self.dequantized:
            return None
        if rounds_as_nodes(module) and self.layers is None:
            for name, child in children(module):
                self.call(join(path, name), child, (), {})
            return None
        if id(module) in self.inner:
            report_unknown((args, kwargs), self.report)
            return Unknown(path, type(module).__name__, reported=True)
        if is_library_module(module) and not isinstance(module, nn.Sequential):
            sites = self.sites.modules.setdefault(id(module), (module, []))[1]
            judged_alone = self.layers is not None and id(module) not in self.layers
            return self._operate(called, sites, behind if judged_alone else None)
        owner = self._owner(path, module)
        if isinstance(owner, str):
            self._report_untraced(path, module, args, kwargs, owner)
            return None
        return self._run(owner, path, args, kwargs)

    def _note(self, call: Call, module: nn.Module, quantizer: FakeQuantize | None) -> None:
        if self.layers is not None and id(module) in self.layers:
            given = next(grids_in((call.args, call.kwargs)), None)
            self.sites.inputs.setdefault(id(module), []).append(given if isinstance(given, Grid) else None)
        elif quantizer is not None and not _only_rounds(module):
            self._note_rounded(call, quantizer)

    def _note_rounded(self, call: Call, quantizer: FakeQuantize, relu: bool = False) -> None:
        """Note an operation that a FakeQuantize rounds.

        What has a layer's own output as input is part of the layer, and what adds the zero point first quantizes
        floats: the int8 model computed them on floats, too.
        """
        if not quantizer.zero_point_first and all(
            isinstance(grid, Grid) for grid in grids_in((call.args, call.kwargs))
        ):
            site = Site(call.path, call.name, _grid(quantizer), ties=quantizer.ties, relu=relu)
            self.sites.rounded.append(call.noted(site))

    def _owner(self, path: str, module: nn.Module) -> Owner | str:
        if id(module) not in self.sites.owners:
            graph = (own_graph(module) if self.layers is not None else None) or self.traces.of(module)
            self.sites.owners[id(module)] = graph if isinstance(graph, str) else Owner(path, module, graph)
        return self.sites.owners[id(module)]

    def _run(self, owner: Owner, path: str, args: Any, kwargs: Any) -> Any:
        values: dict[fx.Node, Any] = {}
        inputs = iter(args)
        for node in owner.graph.nodes:
            given = fx.map_arg(node.args, values.__getitem__)
            given_by_name = fx.map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                values[node] = kwargs[node.name] if node.name in kwargs else next(inputs, None)
            elif node.op == "get_attr":
                values[node] = None
            elif node.op == "call_module":
                child = owner.module.get_submodule(node.target)
                behind = _rounding_behind(node, owner.module)
                values[node] = self.call(join(path, node.target), child, given, given_by_name, behind)
            elif node.op == "output":
                return given[0]
            else:
                name = _name(node)
                run = method(name) if node.op == "call_method" else node.target
                called = Call(path, name, run, given, given_by_name)
                behind = _rounding_behind(node, owner.module)
                values[node] = self._operate(called, owner.sites.setdefault(node, []), behind)
        return None

    def _operate(self, call: Call, sites: list[Site], behind: tuple[FakeQuantize, bool] | None = None) -> Any:
        """The grid of one operation's output; where it rounds, the site is noted in ``sites``."""
        result = operate(call.path, call.name, call.args, call.kwargs, self.report)
        if behind is not None and (isinstance(result, Site) or (isinstance(result, Unknown) and not result.reported)):
            self._note_rounded(call, *behind)
            return Unknown(call.path, call.name, reported=True)
        if not isinstance(result, Site):
            return result
        sites.append(result)
        return result.grid

    def _report_untraced(self, path: str, module: nn.Module, args: Any, kwargs: Any, reason: str) -> None:
        if any(True for _ in grids_in((args, kwargs))) or any(_quantizer(child) for child in module.modules()):
            what = f"{class_name(module)}.forward"
            self.report.leave_uncovered(path, what, f"only its converted modules are imitated: {reason}")


def _quantizer(module: nn.Module) -> FakeQuantize | None:
    if isinstance(module, FakeQuantize):
        return module
    child = module._modules.get(CHILD)
    return child if isinstance(child, FakeQuantize) else None


def _grid(quantizer: FakeQuantize) -> Grid:
    bounds = quantizer.quant_min, quantizer.quant_max
    return Grid(float(quantizer.scale), int(quantizer.zero_point), *bounds)


def _only_rounds(module: nn.Module) -> bool:
    return isinstance(module, FakeQuantize) or type(module) is nn.Identity


def _rounding_behind(node: fx.Node, owner: nn.Module) -> tuple[FakeQuantize, bool] | None:
    """What rounds ``node`` at once in all that uses it, as in FloatFunctional, and whether a ReLU comes first."""
    found: tuple[FakeQuantize, bool] | None = None
    for user in node.users:
        if user.op == "call_module":
            module = owner.get_submodule(str(user.target))
            quantizer = _quantizer(module) if _only_rounds(module) else None
            found = None if quantizer is None else (quantizer, False)
        else:
            relu = getattr(user.target, "__name__", "") == "relu"
            behind = _rounding_behind(user, owner) if relu else None
            found = None if behind is None else (behind[0], True)
        if found is None:
            return None
    return found


def _name(node: fx.Node) -> str:
    """What the operation of a function or method is called; torch has one function for every kind of interpolation."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return "upsampling_nearest2d" if (name, mode) == ("interpolate", "nearest") else name
