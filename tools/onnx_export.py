"""What an exported ONNX file holds, read back without the code that wrote it, against torch's own methods."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import qdeq

# Blocks of rows by gate, from ONNX's order back to torch's: i, o, f, c to i, f, g, o; z, r, h to r, z, n.
_GATES = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul")
FLOAT_LAYERS = ("Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "LSTM", "GRU")


@dataclass(frozen=True)
class Checked:
    """How many of a model's integer weights an exported file holds.

    Attributes:
        weights: of the model.
        same: with the integers, scales and zero points that torch gives.
        back: with the bits of ``dequantize_model`` after ``dequantize_onnx``.

    """

    weights: int
    same: int
    back: int


def torch_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every quantized weight by its dotted name, from torch's own methods of the modules."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if callable(getattr(module, "get_weight", None)):
            found |= {f"{path}.{name}": value for name, value in module.get_weight().items()}
        elif callable(getattr(module, "weight", None)):
            found[f"{path}.weight"] = module.weight()
    return {name: value for name, value in found.items() if isinstance(value, Tensor) and value.is_quantized}


def check(model: nn.Module, path: Path, report: qdeq.Report) -> Checked:
    """Read a file back: its integers against torch's, its float form against ``dequantize_model``.

    Args:
        model: the int8 model, of modules that torch can tell the weights of.
        path: what ``to_onnx`` wrote.
        report: what it returned.

    """
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    nodes = {node.input[0]: node for node in onnx.load(path).graph.node if node.op_type == "DequantizeLinear"}
    floats = {t.name: onnx.numpy_helper.to_array(t) for t in qdeq.dequantize_onnx(path).graph.initializer}
    rebuilt, first = qdeq.dequantize_model(model, return_report=True)
    state, targets = rebuilt.state_dict(), {entry.source: entry.target for entry in first.entries}
    places = {entry.source: entry for entry in report.entries if entry.qscheme is not None}
    same = back = 0
    wanted = torch_weights(model)
    for name, weight in wanted.items():
        entry = places[name]
        node = nodes.get(entry.target)
        if node is None:
            continue
        order = _Order(model, name, entry.note)
        same += _equal(weight, node, held, entry.shape, order)
        array = order.of(floats[entry.target.removesuffix("_quantized")])
        back += array.tobytes() == state[targets[name]].numpy().tobytes()
    return Checked(len(wanted), same, back)


class _Order:
    """How a weight of the file comes back to the order that torch has it in."""

    def __init__(self, model: nn.Module, name: str, note: str) -> None:
        mode = getattr(model.get_submodule(name.rpartition(".")[0]), "mode", "")
        self._gates = _GATES.get(mode, (0,)) if "gates" in note else ()
        self._transposed, self._direction = "transposed" in note, int(name.endswith("_reverse"))

    def of(self, array: np.ndarray) -> np.ndarray:
        if self._transposed:
            return np.ascontiguousarray(array.T)
        if not self._gates:
            return array
        one = array[self._direction if len(array) > 1 else 0]
        blocks = one.reshape(len(self._gates), -1, one.shape[1])
        return np.ascontiguousarray(blocks[list(self._gates)].reshape(one.shape))


def _equal(weight: Tensor, node: Any, held: dict[str, np.ndarray], shape: tuple[int, ...], order: _Order) -> bool:
    """Whether integers, scales and zero points are those of a torch tensor."""
    values, scale, zero = (held[name] for name in node.input)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    along = [-1 if dim == axis and scale.ndim else 1 for dim in range(values.ndim)]
    scale, zero = (np.broadcast_to(array.reshape(along), values.shape) for array in (scale, zero))
    values, scale, zero = (order.of(array) for array in (values, scale, zero))
    wanted = weight.int_repr().reshape(shape).numpy()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        along = [-1 if dim == weight.q_per_channel_axis() else 1 for dim in range(wanted.ndim)]
        grid = [t.reshape(along).numpy() for t in (weight.q_per_channel_scales(), weight.q_per_channel_zero_points())]
    else:
        grid = [np.array(weight.q_scale()), np.array(weight.q_zero_point())]
    same_scale = (np.broadcast_to(grid[0].astype(np.float32), wanted.shape) == scale).all()
    same_zero = (np.broadcast_to(grid[1], wanted.shape) == zero).all()
    return bool((values == wanted).all() and same_scale and same_zero)


def session(path: Path, threads: int = 1) -> tuple[ort.InferenceSession, Counter[str]]:
    """ONNX Runtime with all its optimisations, and how many nodes of each operator they leave."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    optimised = path.with_suffix(".optimised.onnx")
    options.optimized_model_filepath = str(optimised)
    made = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(optimised).graph.node)
    optimised.unlink()
    return made, counts


def run(made: ort.InferenceSession, *inputs: Tensor) -> np.ndarray:
    """The first output."""
    names = [value.name for value in made.get_inputs()]
    first: np.ndarray = made.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
    return first
