"""Writes the table of docs/onnx.md: models that onnxruntime.quantization made int8, and what they are as float ones.

Usage: python -m tools.onnx_table [NAME ...]

Each model is exported by torch, quantized in every way that its row names, and made float again. Then no quantized
operator may be left, ONNX's checker and shape inference have to pass, every weight has to have the bits of ONNX
Runtime's own DequantizeLinear, and the result is compared with the original float graph with those weights in it.
Needs torchvision, onnx and onnxruntime; run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime import quantization
from torch import nn

import qdeq
from qdeq.demo.vision import import_torchvision
from qdeq.onnx_graphs.walk import HANDLERS
from tools.networks import encoders

QDQ, QOPERATOR = quantization.QuantFormat.QDQ, quantization.QuantFormat.QOperator
INT8, UINT8, INT16, UINT16 = (
    getattr(quantization.QuantType, f"Q{name}") for name in ("Int8", "UInt8", "Int16", "UInt16")
)
SIZE = 64  # of images


@dataclass(frozen=True)
class Way:
    """A way of quantizing: the format, and what onnxruntime.quantization is told."""

    name: str
    format: Any
    per_channel: bool = False
    activations: Any = UINT8
    weights: Any = INT8


WAYS = (
    Way("QDQ", QDQ),
    Way("QDQ, channels", QDQ, True),
    Way("QDQ, channels, int8 activations", QDQ, True, INT8),
    Way("QDQ, channels, 16-bit activations", QDQ, True, UINT16),
    Way("QOperator", QOPERATOR, False, UINT8, UINT8),
    Way("QOperator, channels", QOPERATOR, True),
    Way("dynamic", "dynamic", False, None, UINT8),
    Way("dynamic, channels", "dynamic", True, None, INT8),
    Way("4 bits, MatMulNBits", "nbits"),
    Way("4 bits, QDQ in blocks", "nbits_qdq"),
)


@dataclass(frozen=True)
class Result:
    """What came out of one model quantized in one way."""

    weights: int
    equal_weights: int
    activations: int  # in the result
    original_activations: int
    difference: float  # from the original graph with these weights, relative to the largest output
    rounding: float  # of the int8 model from its float form, likewise
    restored: int


class Samples(quantization.CalibrationDataReader):
    """A few inputs, drawn at random."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]) -> None:
        self._left = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input, or None behind the last."""
        return next(self._left, None)


def torchvision_model(name: str) -> Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """A model with random weights, its batch norms with random statistics so that folding them matters."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        model = getattr(import_torchvision().models, name)(weights=None).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return model, (torch.randn(1, 3, SIZE, SIZE),)

    return make


def small_model() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Every activation that a quantizer takes away, and one that stays, in a network of a few layers."""
    layers = (
        nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 6, 1),
        nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.ReLU6(), nn.Linear(10, 4),
    )  # fmt: skip
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[0].weight *= 20  # so that values reach the 6
        model[9].weight *= 300
    return model, (torch.randn(1, 3, 16, 16),)


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]], tuple[int, ...]]] = {
    "small": (small_model, (0, 1, 2, 3, 4, 5, 6, 7)),
    "resnet18": (torchvision_model("resnet18"), (0, 1, 2, 3, 4, 5, 6)),
    "mobilenet_v2": (torchvision_model("mobilenet_v2"), (0, 1, 2, 3, 4, 5, 6)),
    "efficientnet_b0": (torchvision_model("efficientnet_b0"), (0, 1, 4, 5)),
    "encoder": (encoders.make_encoder, (0, 1, 2, 3, 4, 6, 7, 8, 9)),
    "recurrent": (encoders.make_recurrent, (0, 1, 6, 7)),
}


def export(name: str, folder: Path) -> tuple[Path, list[dict[str, np.ndarray]]]:
    """A float model as ONNX, and inputs for it."""
    torch.manual_seed(0)
    model, example = MODELS[name][0]()
    raw, path = folder / f"{name}_raw.onnx", folder / f"{name}.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, example, raw, dynamo=False, opset_version=17)
        quantization.shape_inference.quant_pre_process(str(raw), str(path), skip_symbolic_shape=True)
    names = [value.name for value in onnx.load(path).graph.input]
    draws = [[_like(tensor, seed) for tensor in example] for seed in range(4)]
    return path, [dict(zip(names, draw, strict=True)) for draw in draws]


def _like(tensor: torch.Tensor, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    if tensor.dtype.is_floating_point:
        return torch.randn(tensor.shape, generator=generator).numpy()
    return torch.randint(0, 40, tensor.shape, generator=generator).numpy()


def quantize(path: Path, way: Way, inputs: list[dict[str, np.ndarray]]) -> Path:
    """The model quantized in one way."""
    out = path.with_name(f"{path.stem}_int8.onnx")
    with quantize_quietly():
        _quantize(path, out, way, inputs)
    return out


@contextlib.contextmanager
def quantize_quietly() -> Iterator[None]:
    """Keep onnxruntime.quantization from advising, in a log, what was decided."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _quantize(path: Path, out: Path, way: Way, inputs: list[dict[str, np.ndarray]]) -> None:
    if way.format == "dynamic":
        quantization.quantize_dynamic(path, out, per_channel=way.per_channel, weight_type=way.weights)
    elif way.format in ("nbits", "nbits_qdq"):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        form = QDQ if way.format == "nbits_qdq" else QOPERATOR
        quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=False, quant_format=form)
        quantizer.process()
        onnx.save(quantizer.model.model, out)
    else:
        options = {"per_channel": way.per_channel, "activation_type": way.activations, "weight_type": way.weights}
        quantization.quantize_static(path, out, Samples(inputs), quant_format=way.format, **options)


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


def measure(path: Path, way: Way, inputs: list[dict[str, np.ndarray]]) -> Result:
    """Quantize, make float, and check everything."""
    int8 = quantize(path, way, inputs)
    source = onnx.load(int8)
    result, report = qdeq.dequantize_onnx(int8, return_report=True)
    onnx.checker.check_model(result, full_check=True)
    left = [node.op_type for node in result.graph.node if (node.domain, node.op_type) in HANDLERS]
    assert not left, left
    original = onnx.load(path)
    _put_weights(original, result)
    ours, theirs, rounded = run(result, inputs[0]), run(original, inputs[0]), run(int8, inputs[0])
    size = np.abs(theirs).max()
    return Result(
        len(report.entries),
        equal_weights(source, result, report),
        sum(node.op_type in ("Relu", "Clip") for node in result.graph.node),
        sum(node.op_type in ("Relu", "Clip") for node in original.graph.node),
        float(np.abs(ours - theirs).max() / size),
        float(np.abs(ours - rounded).max() / size),
        sum("put back" in text for texts in report.notes.values() for text in texts),
    )


def _put_weights(original: Any, result: Any) -> None:
    """Give the original graph the weights of the result; a Gemm's are transposed by the dynamic quantizer."""
    floats = {tensor.name: tensor for tensor in result.graph.initializer}
    for tensor in original.graph.initializer:
        name = tensor.name
        if name in floats:
            tensor.CopyFrom(floats[name])
        elif f"{name}_Transposed" in floats:
            array = onnx.numpy_helper.to_array(floats[f"{name}_Transposed"]).T
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))


def rows(names: list[str], folder: Path) -> Iterator[str]:
    """The lines of the table."""
    for name in names:
        path, inputs = export(name, folder)
        for at in MODELS[name][1]:
            found = measure(path, WAYS[at], inputs)
            same = "the same bits" if found.difference == 0 else f"{found.difference:.1e}"
            bits = f"{found.equal_weights} of {found.weights}"
            kept = f"{found.activations} of {found.original_activations}"
            cells = (name, WAYS[at].name, bits, kept, str(found.restored), same, f"{found.rounding:.1e}")
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    chosen = parser.parse_args().names or list(MODELS)
    with tempfile.TemporaryDirectory() as folder:
        for line in rows(chosen, Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
