"""What stands for a rounded value in the result: nothing, the activation that a quantizer took away, a clamp, or Q/DQ.

onnxruntime.quantization deletes a Relu or Clip in front of a QuantizeLinear whose range cuts off the same values. So
dropping Q/DQ alone would leave a network without its activations:

* where the smallest integer stands for 0, nothing negative comes through: a Relu, unless the value cannot be negative;
* where the largest stands for 6 as well, a Clip(0, 6). Any other upper bound cannot be told from one that calibration
  found: ``activations="clamp"`` keeps it.
"""

from __future__ import annotations

from typing import Any

import torch

from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Constant, Rounded, Scope
from qdeq.onnx_graphs.stored import CODES, FLOATS

__all__ = ["round_output"]

SIX_TOLERANCE = 1e-4
"""How far the largest value of a quantized ReLU6 lies from 6: scales are float32."""

# What an activation deleted by a quantizer leaves behind is never the input of these: their outputs are bounded below.
_NEVER_NEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs", "Sqrt", "Softplus", "ReduceL1",
                   "ReduceL2", "ReduceSumSquare"}  # fmt: skip
_FIRST_INPUT = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape", "Transpose", "Flatten",
                "Identity", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Expand", "Tile", "DepthToSpace",
                "SpaceToDepth", "ReduceMean", "ReduceMax", "ReduceMin", "Dropout", "DequantizeLinear", "QuantizeLinear",
                "Resize"}  # fmt: skip
_ALL_INPUTS = {"Add", "Mul", "Concat", "Max", "Sum", "Min", "Div"}
_BOUNDED_BY_ALL = {"Concat", "Max"}
_ABOVE_MINUS_ONE = {"Erf", "Tanh", "Sin", "Cos"}
_LOOKED_AT_BYTES = 1 << 20
_DEPTH = 64  # nodes that are followed back


def round_output(scope: Scope, node: Any, twin: str, output: str, q: Qparams) -> None:
    """Say what the integers ``output`` stand for, of a float value ``twin`` that ``node`` quantizes with ``q``."""
    rewrite = scope.rewrite
    if q.per_tensor:
        rewrite.report.activation_qparams.setdefault(twin, (float(q.scale), int(q.zero_point)))
        if q.code in CODES_OF_NAMES:
            rewrite.report.activation_dtypes.setdefault(twin, CODES_OF_NAMES[q.code])
    if rewrite.mode == "fake_quant":
        result = _fake_quantize(scope, twin, output, q)
    elif rewrite.mode == "clamp" and (bounds := q.bounds()) is not None:
        result = _clip(scope, twin, bounds, q.scale.dtype)
    else:
        result = _activation(scope, node, twin, q)
    scope.values[output] = Rounded(result, q)


CODES_OF_NAMES = {CODES["int8"]: "qint8", CODES["uint8"]: "quint8", CODES["int32"]: "qint32"}


def _fake_quantize(scope: Scope, twin: str, output: str, q: Qparams) -> str:
    rewrite = scope.rewrite
    attributes: dict[str, Any] = {} if q.axis is None else {"axis": q.axis}
    if q.block:
        attributes["block_size"] = q.block
    # Outside 8 bits and before opset 21, these operators are known to ONNX Runtime alone.
    domain = "com.microsoft" if q.code not in CODES_OF_NAMES and rewrite.opset < 21 else ""
    names = [name for name in q.names if name]
    ints = scope.emit(
        "QuantizeLinear", [twin, *names], rewrite.new_name(output), f"{twin}_Quantize", domain, **attributes
    )
    floats = rewrite.new_name(f"{twin}_rounded")
    return scope.emit("DequantizeLinear", [ints, *names], floats, f"{twin}_Dequantize", domain, **attributes)


def _activation(scope: Scope, node: Any, twin: str, q: Qparams) -> str:
    """The value behind the Relu or Clip that a quantizer took away, or itself."""
    if not q.starts_at_zero() or not _can_lose_activation(scope, twin):
        return twin
    rewrite = scope.rewrite
    bounds = q.bounds()
    upper = bounds[1] if bounds else 0.0
    at = rewrite.label(node)
    if abs(upper - 6) <= SIX_TOLERANCE and not _bounded(scope, twin, 6, _DEPTH):
        rewrite.report.note(at, f"Clip(0, 6) put back behind {twin}: the output's integers stand for 0 to 6")
        return _clip(scope, twin, (0.0, 6.0), q.scale.dtype)
    if _bounded(scope, twin, None, _DEPTH):
        return twin
    text = f"Relu put back behind {twin}: nothing below 0 comes through; if it had an upper bound, that was {upper:.6g}"
    rewrite.report.note(at, text)
    name = f"{twin}_Relu"
    return scope.emit("Relu", [twin], rewrite.new_name(f"{twin}_relu"), name)


def _can_lose_activation(scope: Scope, twin: str) -> bool:
    """Whether it is computed: in front of an input or a constant there never was an activation."""
    return scope.producer(twin) is not None


def _clip(scope: Scope, twin: str, bounds: tuple[float, float], dtype: torch.dtype) -> str:
    rewrite = scope.rewrite
    name, output = f"{twin}_Clip", rewrite.new_name(f"{twin}_clip")
    if rewrite.opset < 11:
        return scope.emit("Clip", [twin], output, name, min=bounds[0], max=bounds[1])
    ends = [rewrite.number(f"clip_{'low' if at == 0 else 'high'}", bound, dtype) for at, bound in enumerate(bounds)]
    return scope.emit("Clip", [twin, *ends], output, name)


def _bounded(scope: Scope, name: str, upper: float | None, depth: int) -> bool:
    """Whether a value of the result is never negative, and never above ``upper`` if that is given."""
    known = scope.rewrite.bounded
    if (name, upper) not in known:
        known[name, upper] = depth > 0 and _is_bounded(scope, name, upper, depth)
    return known[name, upper]


def _is_bounded(scope: Scope, name: str, upper: float | None, depth: int) -> bool:
    node = scope.producer(name)
    if node is None:
        return _constant_bounded(scope, name, upper)
    op, inputs = node.op_type, [i for i in node.input if i]
    if op == "Clip":
        return _clip_bounded(scope, node, upper)
    if op in _NEVER_NEGATIVE:
        return upper is None or op in ("Sigmoid", "HardSigmoid", "Softmax")
    if op in _FIRST_INPUT:
        return _bounded(scope, inputs[0], upper, depth - 1)
    if op in ("Mul", "Add") and upper is None and _never_below_zero(scope, op, inputs):
        return True
    if op in _BOUNDED_BY_ALL or (op in _ALL_INPUTS and upper is None):
        return all(_bounded(scope, i, upper, depth - 1) for i in inputs)
    return False


def _never_below_zero(scope: Scope, op: str, inputs: list[str]) -> bool:
    """Squares, and what lies above -1 with 1 added, such as in a GELU."""
    if op == "Mul":
        return len(set(inputs)) == 1
    ops = [getattr(scope.producer(name), "op_type", "") for name in inputs]
    constants = [values for name in inputs if (values := _constant(scope, name)) is not None]
    return any(op in _ABOVE_MINUS_ONE for op in ops) and any(float(values.min()) >= 1 for values in constants)


def _constant_bounded(scope: Scope, name: str, upper: float | None) -> bool:
    values = _constant(scope, name)
    if values is None:
        return False
    return float(values.min()) >= 0 and (upper is None or float(values.max()) <= upper)


def _constant(scope: Scope, name: str) -> torch.Tensor | None:
    """A float constant of the result that is small enough to be looked at; None for all else."""
    weight, value = scope.rewrite.weights.get(name), scope.value(name)
    if weight is not None:
        values = weight.tensor() if weight.bytes <= _LOOKED_AT_BYTES else None
    elif isinstance(value, Constant) and value.stored.code in FLOATS and value.stored.bytes <= _LOOKED_AT_BYTES:
        values = value.stored.read()
    else:
        values = None
    return None if values is None or values.numel() == 0 else values.float()


def _clip_bounded(scope: Scope, node: Any, upper: float | None) -> bool:
    ends: list[float | None] = [None, None]
    for attribute in node.attribute:
        if attribute.name in ("min", "max"):
            ends[attribute.name == "max"] = attribute.f
    for at, name in enumerate(node.input[1:3]):
        value = scope.value(name) if name else None
        if isinstance(value, Constant) and len(value.stored.shape) == 0:
            ends[at] = float(value.stored.read().double())
        elif name:
            ends[at] = scope.rewrite.numbers.get(name)
    low, high = ends
    return low is not None and low >= 0 and (upper is None or (high is not None and high <= upper))
