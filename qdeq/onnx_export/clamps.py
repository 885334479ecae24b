"""Clamps of rounded values, on their integers: as torch's int8 kernels compute them, and without a float operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeq.onnx_export.graph import Graph, rename
from qdeq.onnx_export.roundings import Grids

__all__ = ["clamp_integers"]

_Bounds = tuple[int, int]


def clamp_integers(graph: Graph) -> None:
    """Let Relu and Clip in front of or behind a rounding clamp its integers.

    Both are monotone, and the bounds are rounded as the values are, so the order of rounding and clamping does not
    matter. ONNX Runtime has no integer layer with a bound inside the range of its output, and would run the layer in
    front in float. A clamp in front of a rounding whose range cuts off as much stays: that one it takes into the layer.
    """
    _Clamps(graph).run()


class _Clamps:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._grids, self._readers, self._producers = Grids(graph), graph.readers(), graph.producers()
        self._same: dict[str, str] = {}
        self._skipped: set[str] = set()
        self._nodes: list[Any] = []

    def run(self) -> None:
        for node in self._graph.nodes:
            rename(node, self._same)
            self._grids.read(node)
            if node.output[0] not in self._skipped and not self._clamp(node):
                self._nodes.append(node)
        self._graph.nodes = self._nodes

    def _clamp(self, node: Any) -> bool:
        """Replace a node; False if it is no clamp next to a rounding."""
        floats = _bounds(self._graph, node)
        if floats is None or node.output[0] in self._graph.outputs:
            return False
        given, behind = node.input[0], self._rounding_behind(node.output[0])
        grid, next_grid = self._grids.get(given), None if behind is None else (behind.input[1], behind.input[2])
        if grid is not None:
            bounds = self._integers(floats, grid)
            integers = self._producers[given].input[0]
            if bounds == self._range(grid):
                self._same[node.output[0]] = given
            elif behind is not None and next_grid is not None and self._grids.same(grid, next_grid):
                self._add_clip(integers, behind.output[0], bounds, grid)
            else:
                output = self._graph.new_name(f"{node.output[0]}_quantized")
                self._add_clip(integers, output, bounds, grid)
                self._nodes.append(self._graph.node("DequantizeLinear", [output, *grid], node.output[0]))
                self._grids.set(node.output[0], grid)
                self._producers[node.output[0]] = self._nodes[-1]
            return True
        if (
            behind is None
            or next_grid is None
            or (bounds := self._integers(floats, next_grid)) == self._range(next_grid)
        ):
            return False
        integers = self._graph.new_name(f"{node.output[0]}_unclamped")
        self._nodes.append(self._graph.node("QuantizeLinear", [given, *next_grid], integers))
        self._add_clip(integers, behind.output[0], bounds, next_grid)
        return True

    def _rounding_behind(self, name: str) -> Any:
        """The QuantizeLinear that alone reads a value; None if others do."""
        readers = self._readers.get(name, [])
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear" or len(readers[0].input) != 3:
            return None
        return readers[0] if all(self._graph.array(name) is not None for name in readers[0].input[1:]) else None

    def _add_clip(self, given: str, output: str, bounds: _Bounds, grid: tuple[str, str]) -> None:
        """Clamp ``given``; the rounding that gave ``output`` until now is left out."""
        dtype = self._value(grid[1]).dtype
        names = [
            self._graph.add(f"{output}_{what}", np.array(end, dtype=dtype))
            for what, end in zip(("min", "max"), bounds, strict=True)
        ]
        self._nodes.append(self._graph.node("Clip", [given, *names], output))
        self._skipped.add(output)

    def _integers(self, floats: tuple[float, float], grid: tuple[str, str]) -> _Bounds:
        """Bounds as integers of a grid."""
        scale, zero = self._value(grid[0]), self._value(grid[1])
        low, high = np.rint(np.array(floats, dtype=np.float32) / scale) + zero.astype(np.float32)
        smallest, largest = self._range(grid)
        return int(np.clip(low, smallest, largest)), int(np.clip(high, smallest, largest))

    def _range(self, grid: tuple[str, str]) -> _Bounds:
        limits = np.iinfo(self._value(grid[1]).dtype)
        return int(limits.min), int(limits.max)

    def _value(self, name: str) -> np.ndarray:
        array = self._graph.array(name)
        assert array is not None  # a grid is made of initializers
        return array


def _bounds(graph: Graph, node: Any) -> tuple[float, float] | None:
    """Between which values a node clamps; None for any other, and for bounds that are computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    ends = [-np.inf, np.inf]
    for at, name in enumerate(node.input[1:3]):
        array = graph.array(name)
        if name and array is None:
            return None
        if array is not None:
            ends[at] = float(array)
    return ends[0], ends[1]
