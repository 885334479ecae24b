"""Where activations are rounded: QuantizeLinear and DequantizeLinear as ONNX Runtime's fusion looks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.grids.grid import RANGES
from qdeq.grids.modules import FakeQuantize
from qdeq.onnx_export.graph import Graph
from qdeq.onnx_graphs.movers import data_inputs, is_mover
from qdeq.report import Report
from qdeq.words import join

__all__ = ["Grids", "make_plain", "repeat_behind_movers"]

_ONE_VALUE = ("MaxPool", "TopK")  # the first output has values, the second says where they were


class _Plain(nn.Module):
    """Rounds as QuantizeLinear does: to the nearest integer, ties to even, then the zero point."""

    def __init__(self, rounding: FakeQuantize) -> None:
        super().__init__()
        self.scale, self.zero_point = float(rounding.scale), int(rounding.zero_point)
        self.quant_min, self.quant_max = rounding.quant_min, rounding.quant_max

    def forward(self, input: Tensor) -> Tensor:
        """Round a float tensor of any shape."""
        return torch.fake_quantize_per_tensor_affine(input, self.scale, self.zero_point, self.quant_min, self.quant_max)


def make_plain(model: nn.Module, report: Report) -> None:
    """Let every rounding of a rebuilt model be one that ONNX has, in place; what changes is named in the report."""
    for path, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, FakeQuantize):
                continue
            at = join(path, name)
            if (child.quant_min, child.quant_max) not in (RANGES["quint8"], RANGES["qint8"]):
                reason = f"ONNX has no rounding to {child.quant_min}..{child.quant_max} here: it is left out"
                report.leave_uncovered(at, "output", reason)
                setattr(parent, name, nn.Identity())
                continue
            if child.ties:
                report.note(at, "averages of integers: ties go as the float average falls, a step beside at most")
            if child.zero_point_first:
                report.note(at, "ties: QuantizeLinear rounds before it adds the zero point, the int8 layer after that")
            setattr(parent, name, _Plain(child))


class Grids:
    """The scale and zero point of each value that QuantizeLinear and DequantizeLinear rounded."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._of: dict[str, tuple[str, str]] = {}

    def read(self, node: Any) -> None:
        """Note what a DequantizeLinear gives."""
        constant = len(node.input) == 3 and all(self._graph.array(name) is not None for name in node.input[1:])
        if node.op_type == "DequantizeLinear" and constant and node.input[0] not in self._graph.tensors:
            self._of[node.output[0]] = node.input[1], node.input[2]

    def set(self, name: str, qparams: tuple[str, str]) -> None:
        """Note the initializers with the scale and zero point of a value."""
        self._of[name] = qparams

    def get(self, name: str) -> tuple[str, str] | None:
        """The initializers with the scale and zero point of a value; None if it is not rounded."""
        return self._of.get(name)

    def common(self, names: list[str]) -> tuple[str, str] | None:
        """The one grid of several values; None where they have none, or several."""
        grids = [self._of.get(name) for name in names]
        first = grids[0] if grids else None
        if first is None or any(grid is None or not self.same(grid, first) for grid in grids):
            return None
        return first

    def same(self, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        """Whether two pairs of initializers have the same values."""
        return self._values(one) == self._values(other)

    def _values(self, grid: tuple[str, ...]) -> tuple[object, ...]:
        arrays = [self._graph.array(name) for name in grid]
        return tuple(None if array is None else (array.dtype, array.tobytes()) for array in arrays)


def repeat_behind_movers(graph: Graph) -> None:
    """Round again what an operator only moved, which changes nothing.

    ONNX Runtime fuses an operator with the DequantizeLinear right in front of it and the QuantizeLinear right behind.
    """
    grids, nodes = Grids(graph), []
    readers = graph.readers()
    for node in graph.nodes:
        nodes.append(node)
        grids.read(node)
        if not is_mover(node) or node.op_type == "Resize":
            continue
        qparams = grids.common([node.input[at] for at in data_inputs(node)])
        if qparams is not None:
            for output in list(node.output)[: 1 if node.op_type in _ONE_VALUE else None]:
                if any(reader.op_type != "QuantizeLinear" for reader in readers.get(output, ())):
                    nodes += _rounded(graph, node, output, qparams)
                    grids.set(output, qparams)
    graph.nodes = nodes


def _rounded(graph: Graph, node: Any, output: str, qparams: tuple[str, str]) -> Iterator[Any]:
    """A pair behind ``node`` whose result takes the name ``output``."""
    moved, integers = graph.new_name(f"{output}_moved"), graph.new_name(f"{output}_quantized")
    node.output[:] = [moved if name == output else name for name in node.output]
    yield graph.node("QuantizeLinear", [moved, *qparams], integers)
    yield graph.node("DequantizeLinear", [integers, *qparams], output)
