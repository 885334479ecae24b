"""Clamps of rounded values, on their integers: as torch's int8 kernels compute them, and without a float operator."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeq.onnx_export.graph import Graph
from qdeq.onnx_export.roundings import Grids

__all__ = ["clamp_integers"]


def clamp_integers(graph: Graph) -> None:
    """Let Relu and Clip of a rounded value clamp its integers, and round nothing anew.

    Both are monotone and the bounds are rounded as the values are, so that the order of rounding and clamping does not
    matter. ONNX Runtime has no integer layer with a bound inside its range, and would run the layer in front in float.
    """
    grids, readers, producers = Grids(graph), graph.readers(), graph.producers()
    nodes: list[Any] = []
    skipped: set[str] = set()
    for node in graph.nodes:
        grids.read(node)
        if node.output[0] in skipped:
            continue
        bounds = _bounds(graph, node)
        qparams = grids.get(node.input[0]) if bounds and node.output[0] not in graph.outputs else None
        if bounds is None or qparams is None:
            nodes.append(node)
            continue
        given, output = producers[node.input[0]].input[0], node.output[0]
        behind = readers.get(output, [])
        if (
            len(behind) == 1
            and behind[0].op_type == "QuantizeLinear"
            and grids.same(tuple(behind[0].input[1:]), qparams)
        ):
            skipped.add(behind[0].output[0])  # its rounding changes nothing; the DequantizeLinear behind it stays
            nodes.append(_clip(graph, given, behind[0].output[0], bounds, qparams))
        else:
            integers = graph.new_name(f"{output}_quantized")
            nodes.append(_clip(graph, given, integers, bounds, qparams))
            nodes.append(graph.node("DequantizeLinear", [integers, *qparams], output))
            grids.set(output, qparams)
    graph.nodes = nodes


def _bounds(graph: Graph, node: Any) -> tuple[float, float] | None:
    """Between which values a node clamps; None for any other, and for bounds that are computed."""
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    names = [*node.input[1:3], "", ""][:2]
    arrays = [graph.array(name) for name in names]
    if any(name and array is None for name, array in zip(names, arrays, strict=True)):
        return None
    low, high = (
        default if array is None else float(array) for array, default in zip(arrays, (-np.inf, np.inf), strict=True)
    )
    return low, high


def _clip(graph: Graph, given: str, output: str, bounds: tuple[float, float], qparams: tuple[str, str]) -> Any:
    scale, zero = graph.array(qparams[0]), graph.array(qparams[1])
    assert scale is not None  # a grid is made of initializers
    assert zero is not None
    limits = np.iinfo(zero.dtype)
    steps = np.rint(np.array(bounds, dtype=np.float32) / scale) + zero.astype(np.float32)
    ends = [np.array(np.clip(step, limits.min, limits.max), dtype=zero.dtype) for step in steps]
    names = [graph.add(f"{output}_{what}", end) for what, end in zip(("min", "max"), ends, strict=True)]
    return graph.node("Clip", [given, *names], output)
