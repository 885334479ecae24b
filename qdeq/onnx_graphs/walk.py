"""Every node of a graph, in the order in which they run: rewritten, moved, kept, or refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from qdeq.onnx_graphs.ops import contrib, dynamic, qdq, qlinear
from qdeq.onnx_graphs.ops.handler import Handler
from qdeq.onnx_graphs.order import in_order, names_read, needed
from qdeq.onnx_graphs.package import onnx_library, shown
from qdeq.onnx_graphs.rewrite import Rewrite
from qdeq.onnx_graphs.scope import Accumulator, Alias, Constant, DynamicScale, Rounded, Scope
from qdeq.onnx_graphs.stored import TYPES, Stored, stored

__all__ = ["HANDLERS", "UNKNOWN", "walk_graph"]

HANDLERS: dict[tuple[str, str], Handler] = {
    **qdq.HANDLERS,
    **qlinear.HANDLERS,
    **dynamic.HANDLERS,
    **contrib.HANDLERS,
}
"""Domain and name of an operator -> what rewrites it."""

UNKNOWN = {
    "MulInteger", "ReduceSumInteger", "MatMulInteger16", "QuantizeBFP", "DequantizeBFP", "QuantizeWithOrder",
    "DequantizeWithOrder", "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization",
    "QOrderedLongformerAttention", "QOrderedMatMul", "QMoE", "MatMulBnb4", "MatMulFpQ4", "GemmFloat8",
    "MatMulNBitsMlp", "MatMulNBitsQLoRA", "MatMulNBitsQkv", "MatMulBlockQuantizedFp4Weight",
    "MatMulBlockQuantizedFp8Weight", "GatherBlockQuantized",
}  # fmt: skip
"""Operators of com.microsoft on quantized values that are not rewritten."""

# Of any domain: the same operators for other processors, and those that ONNX Runtime makes while it optimises.
_QUANTIZED = UNKNOWN | {op for _, op in HANDLERS}
_GRAPH, _GRAPHS, _TENSOR = 5, 10, 4
_MAX_DEPTH = 20  # of graphs within graphs


def walk_graph(rewrite: Rewrite, graph: Any, parent: Scope | None, known: set[str], depth: int = 0) -> Scope:
    """Rewrite the nodes of a graph.

    Args:
        rewrite: what holds for the model.
        graph: a GraphProto; it is not changed.
        parent: the graph around it.
        known: all names that the graphs around it give.
        depth: how many graphs that is.

    Raises:
        QdeqValueError: anything that cannot be rewritten; it names the node.

    """
    scope = Scope(rewrite, parent)
    for tensor in graph.initializer:
        if tensor.data_type in TYPES:
            scope.values[tensor.name] = Constant(stored(tensor, rewrite.where, rewrite.external))
    names = {tensor.name for tensor in graph.initializer}
    names |= {tensor.values.name for tensor in graph.sparse_initializer}
    names |= {value.name for value in graph.input}
    known = known | names
    for node in in_order(rewrite.where, graph.node, known):
        _walk_node(scope, node, known, depth)
        known.update(name for name in node.output if name)
    return scope


def _walk_node(scope: Scope, node: Any, known: set[str], depth: int) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    handler = HANDLERS.get((domain, node.op_type))
    if handler is not None:
        if not node.input or not node.output:
            raise scope.error(node, "an operator with inputs and outputs", "none", "The model is damaged.")
        scope.rewrite.quantized = True
        handler(scope, node)
    elif node.op_type in _QUANTIZED:
        remedy = "Quantize the model without this operator, or report it."
        raise scope.error(node, "a quantized operator that qdeq knows", f"{node.op_type} of {node.domain}", remedy)
    elif domain == "" and node.op_type == "Constant":
        _constant(scope, node)
    elif not dynamic.follow(scope, node) and not qdq.move(scope, node):
        _keep(scope, node, known, depth)


def _constant(scope: Scope, node: Any) -> None:
    """A Constant node stays; what it holds may be weights, scales and zero points as an initializer's."""
    scope.copy(node, [], list(node.output))
    helper = onnx_library().numpy_helper
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.type == _TENSOR:
            tensor = attribute.t
        elif attribute.name in ("value_float", "value_int", "value_floats", "value_ints"):
            number = attribute.f if attribute.name.startswith("value_float") else attribute.i
            numbers = attribute.floats or attribute.ints if attribute.name.endswith("s") else number
            dtype = np.float32 if attribute.name.startswith("value_float") else np.int64
            tensor = helper.from_array(np.array(numbers, dtype=dtype))
        else:
            continue
        if tensor.data_type in TYPES:
            found = stored(tensor, scope.rewrite.where, scope.rewrite.external)
            name = node.output[0]
            scope.values[name] = Constant(Stored(name, found.where, found.code, found.shape, found.data))


def _keep(scope: Scope, node: Any, known: set[str], depth: int) -> None:
    """A node that computes on floats, or on integers that are no quantized values: only its names may change."""
    if depth >= _MAX_DEPTH:
        raise scope.error(node, f"at most {_MAX_DEPTH} graphs within one another", "more", "The model is damaged.")
    inputs = [scope.plain(node, name) for name in node.input]
    made = onnx_library().NodeProto()
    made.CopyFrom(node)
    made.input[:] = inputs
    for attribute, source in zip(made.attribute, node.attribute, strict=True):
        if attribute.type == _GRAPH:
            _rewrite_body(scope, attribute.g, source.g, node, known, depth)
        elif attribute.type == _GRAPHS:
            for body, original in zip(attribute.graphs, source.graphs, strict=True):
                _rewrite_body(scope, body, original, node, known, depth)
    scope.put(made)


def _rewrite_body(scope: Scope, body: Any, source: Any, node: Any, known: set[str], depth: int) -> None:
    inner = walk_graph(scope.rewrite, source, scope, known, depth + 1)
    for at, output in enumerate(source.output):
        value = inner.value(output.name)
        if isinstance(value, Rounded | DynamicScale | Accumulator):
            what = f"a graph in it that gives floats as {shown(output.name)}"
            raise scope.error(node, what, "quantized integers", "Quantize the body with its outputs as float.")
        name = inner.plain(node, output.name)
        if isinstance(value, Alias) or name != output.name:
            name = inner.emit("Identity", [name], output.name, f"{output.name}_Identity")
        body.output[at].name = name
    outputs = {output.name for output in body.output}
    del body.node[:], body.initializer[:]
    body.node.extend(needed(inner.nodes, outputs))
    read = {name for one in body.node for name in names_read(one)} | outputs
    was_read = {name for one in source.node for name in names_read(one)}
    for tensor in source.initializer:
        if tensor.name in read or tensor.name not in was_read:
            body.initializer.add().CopyFrom(tensor)
        else:
            scope.rewrite.gone.append(tensor.name)
    del body.value_info[:], body.quantization_annotation[:]
