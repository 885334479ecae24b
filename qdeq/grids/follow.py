"""Follows scales and zero points through the forwards of a rebuilt model, from operation to operation.

The int8 model's float-looking code (``F.avg_pool2d(x, 2)``, ``x.mean([2, 3])``, an ``nn.AvgPool2d``) works on quantized
tensors: torch computes it on integers and rounds the result to the grid of its input, or to one that the operation
prescribes. Which grid that is depends on what ran before. So each forward is traced with torch.fx, its children as
single calls, and the grids are followed through all forwards from the model's input on. Where an operation rounds, a
site is noted. What cannot be followed is named in ``report.uncovered``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from qdeq.grids.grid import Grid
from qdeq.grids.modules import FakeQuantize
from qdeq.grids.rules import KEEPS_VALUES, LEAVES_GRID, Site, operation_key, site_of
from qdeq.report import Report
from qdeq.tree.post_process import CHILD
from qdeq.tree.tracing import Traces
from qdeq.tree.walk import is_library_module
from qdeq.words import class_name, join

__all__ = ["Owner", "Sites", "follow"]


@dataclass(eq=False)
class _Unknown:
    """A quantized value whose grid is not known, and the operation that made it so."""

    path: str
    operation: str
    reported: bool = False


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
        inputs: by id of a converted layer: the grid of its input at each of its calls; None where it is not known.

    """

    owners: dict[int, Owner | str] = field(default_factory=dict)
    modules: dict[int, tuple[nn.Module, list[Site]]] = field(default_factory=dict)
    inputs: dict[int, list[Grid | None]] = field(default_factory=dict)


def follow(model: nn.Module, dequantized: set[int], inner: set[int], report: Report) -> Sites:
    """Find every operation that torch rounds when it runs on quantized tensors.

    Args:
        model: rebuilt model whose converted outputs have their FakeQuantize.
        dequantized: ids of the modules that stand where the int8 model dequantizes.
        inner: ids of converted layers whose output is rounded by the module that took their activation.
        report: gets what could not be covered.

    """
    flow = _Flow(model, dequantized, inner, report)
    flow.report_unknown(flow.call("", model, (), {}))
    return flow.sites


class _Flow:
    def __init__(self, model: nn.Module, dequantized: set[int], inner: set[int], report: Report) -> None:
        self.dequantized = dequantized
        self.inner = inner
        self.report = report
        self.sites = Sites()
        self.traces = Traces(model)

    def call(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The grids of what ``module`` returns, for inputs with the grids ``args``: None means not quantized."""
        quantizer = _quantizer(module)
        if quantizer is not None or id(module) in self.inner:
            given = next(_grids((args, kwargs)), None)
            self.sites.inputs.setdefault(id(module), []).append(given if isinstance(given, Grid) else None)
        if quantizer is not None:
            if not _only_rounds(module):
                self.report_unknown((args, kwargs))
            return _grid(quantizer)
        if id(module) in self.dequantized:
            return None
        if id(module) in self.inner:
            self.report_unknown((args, kwargs))
            return _Unknown(path, type(module).__name__, reported=True)
        if is_library_module(module) and not isinstance(module, nn.Sequential):
            sites = self.sites.modules.setdefault(id(module), (module, []))[1]
            return self._operate(path, type(module).__name__, args, kwargs, sites, absorbed=False)
        owner = self._owner(path, module)
        if isinstance(owner, str):
            self._report_untraced(path, module, args, kwargs, owner)
            return None
        return self._run(owner, path, args, kwargs)

    def _owner(self, path: str, module: nn.Module) -> Owner | str:
        if id(module) not in self.sites.owners:
            graph = self.traces.of(module)
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
                values[node] = self.call(join(path, node.target), child, given, given_by_name)
            elif node.op == "output":
                return given[0]
            else:
                name = node.target if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
                absorbed = _feeds_quantizer(node, owner.module)
                sites = owner.sites.setdefault(node, [])
                values[node] = self._operate(path, name, given, given_by_name, sites, absorbed=absorbed)
        return None

    def _operate(self, path: str, name: str, args: Any, kwargs: Any, sites: list[Site], *, absorbed: bool) -> Any:
        """The grid of one operation's output; where it rounds, the site is noted in ``sites``."""
        key = operation_key(name)
        first = next(_grids((args, kwargs)), None)
        if first is None or key in LEAVES_GRID:
            return None
        if key == "getitem" and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if key in KEEPS_VALUES:
            return first
        self.report_unknown((args, kwargs))
        if isinstance(first, _Unknown):
            return first
        if absorbed:
            return _Unknown(path, name, reported=True)
        site = site_of(path, name, first, args)
        if site is None:
            return _Unknown(path, name)
        sites.append(site)
        return site.grid

    def report_unknown(self, values: Any) -> None:
        """Name the operations whose quantized output someone uses without its grid being known."""
        for value in _grids(values):
            if isinstance(value, _Unknown) and not value.reported:
                value.reported = True
                reason = "how torch rounds it on quantized tensors is not known here"
                self.report.leave_uncovered(value.path, value.operation, reason)

    def _report_untraced(self, path: str, module: nn.Module, args: Any, kwargs: Any, reason: str) -> None:
        if any(True for _ in _grids((args, kwargs))) or any(_quantizer(child) for child in module.modules()):
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


def _feeds_quantizer(node: fx.Node, owner: nn.Module) -> bool:
    """Whether everything that uses ``node`` rounds it at once, possibly after a ReLU, as FloatFunctional's ops do."""
    if not node.users:
        return False
    for user in node.users:
        if user.op == "call_module":
            module = owner.get_submodule(str(user.target))
            if not (_only_rounds(module) and _quantizer(module)):
                return False
        elif getattr(user.target, "__name__", "") != "relu" or not _feeds_quantizer(user, owner):
            return False
    return True


def _grids(value: Any) -> Iterator[Grid | _Unknown]:
    if isinstance(value, Grid | _Unknown):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _grids(item)
    elif isinstance(value, dict):
        yield from _grids(list(value.values()))
