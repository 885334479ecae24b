"""Follows the scales of quantized values through a graph, and puts clamps and roundings behind its nodes."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from qdeq.grids.grid import RANGES, Grid, Output
from qdeq.grids.modules import Clamp, FakeQuantize
from qdeq.grids.nodes import node_name
from qdeq.grids.rules import Site, Unknown, grids_in, operate, report_unknown
from qdeq.report import Report
from qdeq.sources.graph.targets import operation_name

__all__ = ["Grids", "State"]

# Operations whose output is contiguous, whatever their input is.
_LAID_OUT_ANEW = frozenset(
    {
        "flatten",
        "unflatten",
        "reshape",
        "view",
        "permute",
        "transpose",
        "contiguous",
        "pixel_shuffle",
        "channel_shuffle",
    }
)
# Dimensions that can only be the innermost ones, by the number that images and volumes have.
_INNER = ((-1,), (-2, -1), (2, 3), (-3, -2, -1), (2, 3, 4))
State = Any
"""The grid of a node's value: a Grid, an Unknown one, None for floats; lists and tuples of them for such values."""


class Grids:
    """The grid of each value of one graph.

    Args:
        graph: that is being built.
        mode: what becomes of the quantization of activations.
        report: gets what is not imitated.
        taken: dotted names that are not free for new modules.

    """

    def __init__(self, graph: fx.Graph, mode: str, report: Report, taken: set[str]) -> None:
        self.modules: dict[str, nn.Module] = {}
        self._of: dict[fx.Node, State] = {}
        self._channels_last: set[fx.Node] = set()
        # "exact" makes of these roundings what it needs.
        self._mode = "fake_quant" if mode == "exact" else mode
        self._graph, self._taken = graph, taken
        # Without roundings nothing is uncovered.
        self._report = Report() if mode == "drop" else report

    def set(self, node: fx.Node, state: State) -> None:
        """Note the grid of the value of a node of the source."""
        self._of[node] = state
        if operation_name(node) not in _LAID_OUT_ANEW and any(
            given in self._channels_last for given in node.all_input_nodes
        ):
            self._channels_last.add(node)

    def convolved(self, node: fx.Node) -> None:
        """Note that a convolution gives the value of a node of the source, which is channels_last."""
        self._channels_last.add(node)

    def get(self, value: Any) -> State:
        """The grids of an argument, or of arguments."""
        return fx.map_arg(value, lambda node: self._of.get(node))

    def quantized(self, value: Any) -> bool:
        """Whether any of the values is quantized."""
        return next(grids_in(self.get(value)), None) is not None

    def behind(self, value: fx.Node, output: Output, args: Any, name: str = "") -> tuple[fx.Node, Grid]:
        """Clamp or round a value to the grid that its operation states.

        Args:
            value: node of the new graph.
            output: the operation's scale and zero point.
            args: its arguments in the source: where it states no dtype, the output has that of the first quantized.
            name: of the node; the module's where it is empty.

        """
        report_unknown(self.get(args), self._report)
        given = next((grid for grid in grids_in(self.get(args)) if isinstance(grid, Grid)), None)
        low, high = RANGES.get(output.dtype) or ((given.quant_min, given.quant_max) if given else RANGES["quint8"])
        grid = Grid(output.scale, output.zero_point, low, high)
        if self._mode == "clamp":
            value = self._insert(value, Clamp(grid), name)
        if self._mode == "fake_quant":
            value = self._insert(value, FakeQuantize(grid, zero_point_first=output.zero_point_first), name)
        return value, grid

    def operate(self, path: str, name: str, args: Any, kwargs: Any) -> State:
        """What an operation without a scale of its own makes of the grids of its inputs: a grid, or a :class:`Site`."""
        return operate(path, name, self.get(args), self.get(kwargs), self._report)

    def at(self, node: fx.Node, value: fx.Node, site: Site) -> tuple[fx.Node, Grid]:
        """Round the value of a node of the source as torch rounds its operation by itself."""
        if self._mode == "fake_quant":
            rounding = FakeQuantize(site.grid, ties=self._ties(node, site))
            if site.constant is not None:
                rounding.number = next(arg for arg in value.args if isinstance(arg, int | float))
                value.args = tuple(site.constant if isinstance(arg, int | float) else arg for arg in value.args)
            value = self._insert(value, rounding)
        return value, site.grid

    def _ties(self, node: fx.Node, site: Site) -> str:
        """Which tie is even: averages of what is not channels_last are integer arithmetic."""
        if any(given in self._channels_last for given in node.all_input_nodes):
            return site.ties
        inner = operation_name(node) == "mean" and _dimensions(node) in _INNER
        return "integer" if site.ties or inner else ""

    def leave(self, path: str, operation: str, reason: str) -> None:
        """Name an operation whose rounding is not imitated."""
        self._report.leave_uncovered(path, operation, reason)

    def finish(self, value: Any) -> None:
        """Name what gave a value that becomes a float, or is the graph's output, without its grid being known."""
        report_unknown(self.get(value), self._report)

    def unknown(self, path: str, operation: str) -> Unknown:
        """The grid of a quantized value of which nobody knows the scale."""
        return Unknown(path, operation)

    def given(self) -> Unknown:
        """The grid of a quantized value that needs no rounding, or whose rounding was named as not imitated."""
        return Unknown("", "", reported=True)

    def _insert(self, value: fx.Node, module: nn.Module, name: str = "") -> fx.Node:
        number = len(self.modules)
        while (target := node_name(number)) in self._taken:
            number += 1
        self._taken.add(target)
        self.modules[target] = module
        return self._graph.create_node("call_module", target, (value,), {}, name or target)


def _dimensions(node: fx.Node) -> tuple[int, ...]:
    """The dimensions that a mean goes over, in ascending order; empty where the code does not say."""
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
    given = [given] if isinstance(given, int) else given
    known = isinstance(given, list | tuple) and all(isinstance(number, int) for number in given)
    return tuple(sorted(given)) if known else ()
