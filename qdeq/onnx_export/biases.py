"""Biases as int32, on the grid of the sums that they are added to."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeq.onnx_export.graph import Graph
from qdeq.onnx_export.roundings import Grids

__all__ = ["quantize_biases"]

_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_LARGEST = 2**31 - 1


def quantize_biases(graph: Graph) -> int:
    """Write the bias of each layer on rounded values with integer weights as int32; say how many.

    Its scale is the product of those of input and weight, as ONNX Runtime's integer layers want it.
    """
    grids, producers, readers = Grids(graph), graph.producers(), graph.readers()
    nodes: list[Any] = []
    count = 0
    for node in graph.nodes:
        grids.read(node)
        bias = node.input[2] if node.op_type in _LAYERS and len(node.input) > 2 else ""
        array = graph.array(bias) if len(readers.get(bias, ())) == 1 else None
        scale = _scale(graph, node, grids, producers) if array is not None else None
        if array is not None and scale is not None:
            steps = np.rint(array.astype(np.float64) / scale.astype(np.float64))
            if np.abs(steps).max(initial=0) <= _LARGEST and scale.shape in ((), array.shape):
                nodes.append(_dequantized(graph, bias, steps.astype(np.int32), scale))
                count += 1
        nodes.append(node)
    graph.nodes = nodes
    return count


def _scale(graph: Graph, node: Any, grids: Grids, producers: dict[str, Any]) -> np.ndarray | None:
    """The scale of a layer's sums, float32; None where its input is not rounded or its weight is no integers."""
    given, weight = grids.get(node.input[0]), producers.get(node.input[1])
    if given is None or weight is None or weight.op_type != "DequantizeLinear":
        return None
    one, other = graph.array(given[0]), graph.array(weight.input[1])
    return None if one is None or other is None else np.asarray(one * other, dtype=np.float32)


def _dequantized(graph: Graph, name: str, steps: np.ndarray, scale: np.ndarray) -> Any:
    del graph.tensors[name]
    inputs = [
        graph.add(f"{name}_quantized", steps),
        graph.add(f"{name}_scale", scale),
        graph.add(f"{name}_zero_point", np.zeros(scale.shape, dtype=np.int32)),
    ]
    return graph.node("DequantizeLinear", inputs, name, **({"axis": 0} if scale.ndim else {}))
