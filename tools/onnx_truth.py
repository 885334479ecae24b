"""What ONNX Runtime itself makes of a quantized model and of its weights, with nothing optimised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import qdeq

__all__ = ["equal_weights", "run"]


def run(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The first output, with nothing optimised."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    first: np.ndarray = ort.InferenceSession(source, options).run(None, feeds)[0]
    return first


def equal_weights(source: Any, result: Any, report: qdeq.Report) -> int:
    """How many weights have the bits that ONNX Runtime's own DequantizeLinear gives for the same integers."""
    floats = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    held = {tensor.name: tensor for tensor in source.graph.initializer}
    readers: dict[str, Any] = {}
    for node in source.graph.node:
        for at, name in enumerate(node.input):
            readers.setdefault(name, (node, at))
    return sum(
        floats[entry.target].tobytes() == wanted.tobytes()
        for entry in report.entries
        if (wanted := _runtime_weight(held, *readers[entry.source])) is not None
    )


def _runtime_weight(held: dict[str, Any], node: Any, at: int) -> np.ndarray | None:
    """The float weight as ONNX Runtime computes it; of operators that hold it in blocks by a unit matrix."""
    make = onnx.helper
    if node.op_type == "MatMulNBits":
        columns = next(attribute.i for attribute in node.attribute if attribute.name == "K")
        one = onnx.NodeProto()
        one.CopyFrom(node)
        one.input[0] = "x"
        return _alone(one, held, {"x": np.eye(columns, dtype=np.float32)})
    if node.op_type == "DynamicQuantizeLSTM":
        names = [node.input[at], *node.input[8 + 2 * (at - 1) : 10 + 2 * (at - 1)]]
        weight, scale, zero = (onnx.numpy_helper.to_array(held[name]) for name in names)
        shape = (-1, 1, scale.shape[1] if scale.ndim == 2 else 1)
        floats = (weight.astype(np.int32) - zero.reshape(shape).astype(np.int32)).astype(np.float32) * scale.reshape(
            shape
        )
        return np.ascontiguousarray(floats.transpose(0, 2, 1))
    if node.op_type == "DequantizeLinear":
        return _alone(node, held, {})
    scale, zero, axis = _beside(held, node, at)
    if scale is None:
        return None
    tensors = {"s": scale} | ({} if zero is None else {"z": zero})
    attributes = {} if scale.ndim == 0 else {"axis": axis}
    one = make.make_node("DequantizeLinear", [node.input[at], *tensors], ["y"], **attributes)
    held = held | {name: onnx.numpy_helper.from_array(array, name) for name, array in tensors.items()}
    return _alone(one, held, {})


def _beside(held: dict[str, Any], node: Any, at: int) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """Scale and zero point of the integers that an operator reads, and the axis of their channels.

    They are inputs of QLinearConv and its kin, the product of two for int32 biases, and known by name for others.
    """

    def array(name: str) -> np.ndarray | None:
        found = onnx.numpy_helper.to_array(held[name]) if name in held else None
        return found.reshape(()) if found is not None and found.size == 1 else found

    op, inputs = node.op_type, node.input
    axis = 0 if "Conv" in op or any(a.name == "transB" and a.i for a in node.attribute) else 1
    if op in ("QLinearConv", "QGemm") and at in (6, 8):
        one, other = array(inputs[1]), array(inputs[4])
        return (None, None, 0) if one is None or other is None else (one * other, None, 0)
    if op.startswith("Q"):
        return array(inputs[at + 1]), array(inputs[at + 2]), axis
    stem = inputs[at].removesuffix("_quantized")
    return array(f"{stem}_scale"), array(f"{stem}_zero_point"), axis


def _alone(node: Any, held: dict[str, Any], feeds: dict[str, np.ndarray]) -> np.ndarray:
    make = onnx.helper
    inputs = [make.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()]
    outputs = [make.make_tensor_value_info(node.output[0], 1, None)]
    graph = make.make_graph([node], "one", inputs, outputs, [held[name] for name in node.input if name in held])
    opsets = [make.make_opsetid("", 21), make.make_opsetid("com.microsoft", 1)]
    return run(make.make_model(graph, opset_imports=opsets, ir_version=10), feeds)
