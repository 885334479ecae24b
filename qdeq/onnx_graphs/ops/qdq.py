"""QuantizeLinear and DequantizeLinear, and the operators between them that only move values."""

from __future__ import annotations

from typing import Any

from qdeq.onnx_graphs.attributes import argument, number_of
from qdeq.onnx_graphs.floats import float_of, quantizer_qparams
from qdeq.onnx_graphs.movers import READERS, data_inputs, is_mover, wrong_mover
from qdeq.onnx_graphs.ops.dynamic import dynamic_qparams
from qdeq.onnx_graphs.ops.handler import Handler
from qdeq.onnx_graphs.outputs import round_output
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Alias, Constant, DynamicScale, Moved, Rounded, Scope
from qdeq.onnx_graphs.stored import FLOATS, INTEGERS

__all__ = ["HANDLERS", "MAX_DEPTH", "move"]

MAX_DEPTH = 100
"""Operators behind one another that may move an integer constant."""


def quantize_linear(scope: Scope, node: Any) -> None:
    """Floats to integers: a constant is computed when it is read, anything else keeps its float twin."""
    name = node.input[0]
    value = scope.value(name)
    if isinstance(value, Constant) and value.stored.code in FLOATS:
        scope.values[node.output[0]] = Moved(node, scope, node.output[0])
        return
    round_output(scope, node, scope.plain(node, name), node.output[0], quantizer_qparams(scope, node))


def dequantize_linear(scope: Scope, node: Any) -> None:
    """Integers to floats: the floats that they stand for are there, or become a weight."""
    if isinstance(scope.value(argument(node, 1)), DynamicScale):
        q = dynamic_qparams(scope, node, argument(node, 1), argument(node, 2))
    else:
        q = quantizer_qparams(scope, node)
    wanted = number_of(scope.rewrite, node, "output_dtype", 0)
    dtype = FLOATS.get(wanted, q.scale.dtype)
    scope.values[node.output[0]] = Alias(float_of(scope, node, node.input[0], q, dtype))


def move(scope: Scope, node: Any) -> bool:
    """Rewrite an operator that moves quantized integers; False if it is none, or moves no such values."""
    if node.domain in ("", "ai.onnx") and node.op_type in READERS:
        value = scope.value(argument(node, 0))
        if not isinstance(value, Rounded):
            return False
        scope.copy(node, [value.twin, *(scope.plain(node, name) for name in node.input[1:])], list(node.output))
        return True
    if node.op_type == "Pad" and node.domain in ("", "ai.onnx"):
        return _pad(scope, node)
    if node.op_type == "Clip" and node.domain in ("", "ai.onnx"):
        return _clamp(scope, node)
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        return _cast_to_the_same(scope, node)
    if not is_mover(node):
        return False
    data = data_inputs(node)
    values = [scope.value(node.input[at]) for at in data]
    if any(isinstance(value, Rounded) for value in values):
        _move_rounded(scope, node, data)
        return True
    integers = [isinstance(v, Moved) or (isinstance(v, Constant) and v.stored.code in INTEGERS) for v in values]
    if not integers or not all(integers):
        return False
    depth = 1 + max((value.depth for value in values if isinstance(value, Moved)), default=0)
    if depth > MAX_DEPTH:
        what = f"at most {MAX_DEPTH} operators that move one constant"
        raise scope.error(node, what, "more", "Fold the model's constants first.")
    for output in node.output:
        scope.values[output] = Moved(node, scope, output, depth)
    return True


def _cast_to_the_same(scope: Scope, node: Any) -> bool:
    """Torch's exporter puts a Cast to their own type behind quantized integers."""
    value = scope.value(argument(node, 0))
    if not isinstance(value, Rounded) or value.q.code != number_of(scope.rewrite, node, "to", 0):
        return False
    scope.values[node.output[0]] = value
    return True


def _move_rounded(scope: Scope, node: Any, data: list[int]) -> None:
    if wrong := wrong_mover(scope, node):
        raise scope.error(node, "an operator that only moves quantized values", wrong, "Quantize the model without it.")
    q = next(v.q for at in data if isinstance(v := scope.value(node.input[at]), Rounded))
    if q.axis is not None and node.op_type != "Identity":
        raise scope.error(
            node, "values with one scale for all", f"scales along axis {q.axis}", "Quantize it per tensor."
        )
    dtype = q.scale.dtype
    inputs = [
        float_of(scope, node, name, q, dtype) if at in data else scope.plain(node, name)
        for at, name in enumerate(node.input)
    ]
    outputs = [scope.rewrite.new_name(output) if output else "" for output in node.output]
    if node.op_type in ("TopK", "MaxPool"):
        outputs[1:] = node.output[1:]  # places, not values
    scope.copy(node, inputs, outputs)
    for output, twin in zip(node.output, outputs, strict=True):
        if output != twin:
            scope.values[output] = Rounded(twin, q)


def _pad(scope: Scope, node: Any) -> bool:
    value = scope.value(argument(node, 0))
    if not isinstance(value, Rounded):
        return False
    q, rewrite = value.q, scope.rewrite
    if not q.per_tensor:
        raise scope.error(node, "values with one constant scale for all", "others", "Quantize it per tensor.")
    inputs = [value.twin, *(scope.plain(node, name) for name in node.input[1:2])]
    constant = argument(node, 2)
    inputs.append(float_of(scope, node, constant, q, q.scale.dtype) if constant else _zero_integer(scope, q))
    inputs += [scope.plain(node, name) if name else "" for name in node.input[3:]]
    if len(node.input) < 2:
        raise scope.error(node, "the pads as an input", "an attribute", "Convert the model to opset 11 or later.")
    twin = scope.copy(node, inputs, [rewrite.new_name(node.output[0])])
    scope.values[node.output[0]] = Rounded(twin, q)
    return True


def _clamp(scope: Scope, node: Any) -> bool:
    """Clip of integers: the same bounds as floats, without one that all of them keep to."""
    value = scope.value(argument(node, 0))
    if not isinstance(value, Rounded):
        return False
    q, rewrite = value.q, scope.rewrite
    if not q.per_tensor or q.code not in INTEGERS:
        raise scope.error(node, "values with one constant scale for all", "others", "Quantize it per tensor.")
    bounds = []
    for at, (name, end) in enumerate(zip(("clip_low", "clip_high"), INTEGERS[q.code], strict=True), 1):
        given = argument(node, at)
        number = int(scope.numbers(node, given, "bound")) if given else end
        bound = (number - int(q.zero_point)) * float(q.scale)
        bounds.append("" if number == end else rewrite.number(name, bound, q.scale.dtype))
    twin = value.twin
    if any(bounds):
        low, high = bounds
        relu = not high and rewrite.numbers[low] == 0
        inputs = [twin] if relu else [twin, low, *([high] if high else [])]
        twin = scope.emit("Relu" if relu else "Clip", inputs, rewrite.new_name(node.output[0]), node.name)
    scope.values[node.output[0]] = Rounded(twin, q)
    return True


def _zero_integer(scope: Scope, q: Qparams) -> str:
    """What the integer 0, with which Pad fills, stands for."""
    return scope.rewrite.number("pad_value", (0 - int(q.zero_point)) * float(q.scale), q.scale.dtype)


HANDLERS: dict[tuple[str, str], Handler] = {
    (domain, op): handler
    for domain in ("", "com.microsoft")
    for op, handler in (("QuantizeLinear", quantize_linear), ("DequantizeLinear", dequantize_linear))
}
