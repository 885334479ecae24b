"""Small ONNX models, what ONNX Runtime makes of them, and what has to hold for each that was made float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import qdeq

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
ort = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")

MICROSOFT = "com.microsoft"
QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
    "QLinearMatMul", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid", "QLinearLeakyRelu", "QGemm",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean", "QLinearSoftmax", "QLinearWhere",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulNBits", "QAttention",
    "QEmbedLayerNormalization",
}  # fmt: skip


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def node(op: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attributes: Any) -> Any:
    """``-`` stands for an input that is left out."""
    names = [name.replace("-", "") if name == "-" else name for name in inputs.split()]
    return onnx.helper.make_node(
        op, names, outputs.split(), name=name or (f"Mul_{outputs}" if op == "Mul" else op), domain=domain, **attributes
    )


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] | Mapping[str, int],
    tensors: Mapping[str, Any],
    opset: int = 21,
    types: Mapping[str, int] | None = None,
) -> Any:
    """A model.

    ``outputs`` have as many dimensions as the first input, or say how many; ``tensors`` are arrays or TensorProtos;
    ``types`` are those of inputs and outputs that are not float32.
    """
    types = types or {}
    if not isinstance(outputs, Mapping):
        outputs = dict.fromkeys(outputs, len(next(iter(inputs.values()), ())))
    info = onnx.helper.make_tensor_value_info
    made = onnx.helper.make_graph(
        nodes,
        "g",
        [info(name, types.get(name, 1), list(shape)) for name, shape in inputs.items()],
        [info(name, types.get(name, 1), [f"{name}{at}" for at in range(rank)]) for name, rank in outputs.items()],
        [t if hasattr(t, "dims") else onnx.numpy_helper.from_array(np.asarray(t), n) for n, t in tensors.items()],
    )
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid(MICROSOFT, 1)]
    return onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)


def run(made: Any, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> list[np.ndarray]:
    """What ONNX Runtime computes without optimising: it rounds float weights between Q and DQ otherwise."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    source = made if isinstance(made, str) else made.SerializeToString()
    session = ort.InferenceSession(source, options)
    wanted = [one.name for one in session.get_inputs()]
    return session.run(outputs, {name: feeds[name] for name in wanted})


def operators(made: Any) -> list[str]:
    """Of all nodes, those in subgraphs and functions included."""

    def of(nodes: Any) -> list[str]:
        found = []
        for one in nodes:
            found.append(one.op_type)
            for attribute in one.attribute:
                found += of(attribute.g.node)
        return found

    return of(made.graph.node) + [op for function in made.functions for op in of(function.node)]


def weights(made: Any) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


def floated(source: Any, **options: Any) -> Any:
    """``dequantize_onnx``, with what has to hold whatever the model is."""
    before = source.SerializeToString(deterministic=True)
    result, report = qdeq.dequantize_onnx(source, return_report=True, **options)
    assert source.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result, full_check=True)
    if options.get("activations") != "fake_quant":
        assert not QUANTIZED & set(operators(result))
    held = set(weights(result))
    assert {entry.target for entry in report.entries} <= held
    gone = {tensor.name for tensor in source.graph.initializer} - held
    assert gone <= {e.source for e in report.entries} | {d.source for d in report.dropped}
    return result, report


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def dequantized(ints: Any, scale: Any, zero_point: Any = None, opset: int = 21, **attributes: Any) -> np.ndarray:
    """What ONNX Runtime's DequantizeLinear makes of a constant."""
    tensors = {"q": ints, "s": scale} | ({} if zero_point is None else {"z": zero_point})
    types = {"y": onnx.helper.np_dtype_to_tensor_dtype(np.asarray(scale).dtype)}
    nodes = [node("DequantizeLinear", " ".join(tensors), "y", **attributes)]
    made = model(nodes, {}, {"y": len(ints.dims) if hasattr(ints, "dims") else ints.ndim}, tensors, opset, types)
    return run(made, {})[0]
