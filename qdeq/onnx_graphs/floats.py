"""The float value that quantized integers stand for: the way back from an operator that states scale and zero point."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qdeq.onnx_graphs.attributes import argument, number_of
from qdeq.onnx_graphs.movers import data_inputs, qparams_before
from qdeq.onnx_graphs.package import shown
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Constant, Moved, Rounded, Scope
from qdeq.onnx_graphs.stored import CODES, FLOATS, INTEGERS, TYPES, Stored
from qdeq.words import dtype_name

__all__ = ["float_in", "float_of", "quantizer_qparams"]


def float_in(scope: Scope, node: Any, at: int, axis: int | None = None) -> tuple[str, Qparams]:
    """The float twin of the input ``at``, whose scale and zero point are the next two inputs.

    ``axis`` is that of the channels in the input, where there is more than one scale.
    """
    name, scale, zero_point = (argument(node, at + offset) for offset in range(3))
    q = scope.qparams(node, scale, zero_point, axis)
    return float_of(scope, node, name, q, q.scale.dtype), q


def float_of(scope: Scope, node: Any, name: str, q: Qparams, dtype: torch.dtype) -> str:
    """The name in the result of the floats that the integers ``name`` stand for.

    Args:
        scope: of the node.
        node: what reads the integers, for errors.
        name: of the integers.
        q: scale and zero point that the node states.
        dtype: of the floats.

    Raises:
        QdeqValueError: they are not the ones that the integers were made with, or the integers are no values.

    """
    value = scope.value(name)
    if isinstance(value, Rounded):
        _check_same(scope, node, name, value.q, q)
        return value.twin
    if isinstance(value, Constant):
        return scope.rewrite.weight_of(value.stored, _checked(scope, node, value.stored, q), dtype)
    if isinstance(value, Moved):
        return _moved(value, node, q, dtype)
    if q.dynamic:
        raise scope.error(node, "integers that DynamicQuantizeLinear made", shown(name), "The model is damaged.")
    return _by_arithmetic(scope, node, scope.plain(node, name), q)


def _check_same(scope: Scope, node: Any, name: str, made: Qparams, stated: Qparams) -> None:
    if made.key() == stated.key() and (stated.code is None or made.code == stated.code):
        return
    what = f"the scale and zero point that {shown(name)} was quantized with, {_words(made)}"
    remedy = "Quantize the model anew: its operators contradict one another."
    raise scope.error(node, what, _words(stated), remedy)


def _words(q: Qparams) -> str:
    kind = TYPES[q.code].name if q.code in TYPES else "integers"
    if q.dynamic:
        return f"{shown(q.dynamic)} of {kind}"
    if q.axis is not None:
        return f"{shown(q.names[0])} along axis {q.axis} of {kind}"
    return f"{float(q.scale):.9g} and {int(q.zero_point)} of {kind}"


def _checked(scope: Scope, node: Any, ints: Stored, q: Qparams) -> Qparams:
    """The same scales with an axis from 0 on, for these integers."""
    kind = TYPES[ints.code].name
    if ints.code not in INTEGERS and not kind.startswith("float8"):
        raise scope.error(node, f"integers or 8-bit floats {shown(ints.name)}", kind, "The model is damaged.")
    if q.code is not None and q.code != ints.code:
        what = f"a zero point {shown(q.names[1])} of the type of {shown(ints.name)}, {kind}"
        raise scope.error(node, what, TYPES[q.code].name, "The model is damaged: get a fresh copy.")
    axis = q.axis
    if axis is not None and axis < 0:
        axis += len(ints.shape)
    return replace(q, code=ints.code, axis=axis)


def _moved(moved: Moved, reader: Any, q: Qparams, dtype: torch.dtype) -> str:
    """Floats in front of the operator that moved the integers, then the same operator on these."""
    scope, node = moved.scope, moved.node
    key = (moved.output, dtype, *q.key())
    if (name := scope.once(key)) is not None:
        return name
    if node.op_type == "QuantizeLinear":
        return scope.remember(key, _rounded_constant(scope, node, moved.output, q, dtype))
    inputs = list(node.input)
    data = data_inputs(node)
    for at in data:
        before = qparams_before(scope, node, q, _rank(scope, inputs[at]))
        inputs[at] = float_of(scope, reader, inputs[at], before, dtype)
    inputs = [name if at in data else scope.plain(node, name) for at, name in enumerate(inputs)]
    outputs = [scope.rewrite.new_name(output) if output else "" for output in node.output]
    scope.copy(node, inputs, outputs)
    for output, made in zip(node.output, outputs, strict=True):
        scope.remember((output, *key[1:]), made)
    return outputs[list(node.output).index(moved.output)]


def _rank(scope: Scope, name: str) -> int | None:
    """How many dimensions an integer constant has, where that is known."""
    value = scope.value(name)
    while isinstance(value, Moved) and value.node.op_type in ("Transpose", "Identity"):
        value = value.scope.value(value.node.input[0])
    return len(value.stored.shape) if isinstance(value, Constant) else None


def quantizer_qparams(scope: Scope, node: Any) -> Qparams:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
    rewrite = scope.rewrite
    code = None
    if node.op_type == "QuantizeLinear":
        code = number_of(rewrite, node, "output_dtype", 0) or CODES["uint8"]
    axis, block = number_of(rewrite, node, "axis", 1), number_of(rewrite, node, "block_size", 0)
    return scope.qparams(node, argument(node, 1), argument(node, 2), axis, block, code)


def _rounded_constant(scope: Scope, node: Any, output: str, q: Qparams, dtype: torch.dtype) -> str:
    """A float constant that the model itself quantizes when it runs: the values that come out of that."""
    made_with = quantizer_qparams(scope, node)
    _check_same(scope, node, output, made_with, q)
    value = scope.value(node.input[0])
    assert isinstance(value, Constant)
    source = value.stored
    if made_with.axis is not None and made_with.axis < 0:
        made_with = replace(made_with, axis=made_with.axis + len(source.shape))
    if made_with.block or made_with.code not in INTEGERS or TYPES[made_with.code].bits < 8:
        what = "a constant quantized to integers of 8 bits or more, per tensor or per channel"
        got = "blocks" if made_with.block else TYPES[made_with.code or 0].name
        raise scope.error(node, what, got, "Fold the model's constants first.")
    ints = Stored(source.name, source.where, made_with.code, source.shape, lambda: _quantize(source, made_with))
    note = f"rounded as {scope.rewrite.label(node)} does: the model stores it as {dtype_name(FLOATS[source.code])}"
    return scope.rewrite.weight_of(ints, made_with, dtype, note)


def _quantize(source: Stored, q: Qparams) -> Tensor:
    """QuantizeLinear: ``saturate(round(x / scale) + zero_point)``, halves to even, in float32."""
    assert q.code is not None
    shape = [-1 if dim == q.axis else 1 for dim in range(len(source.shape))]
    scale, zero = (v if q.axis is None else v.reshape(shape) for v in (q.scale.float(), q.zero_point))
    low, high = INTEGERS[q.code]
    values = (source.read().float() / scale).round().double() + zero.double()
    ints = values.clamp(low, high).to(TYPES[q.code].storage)
    return ints.reshape(-1).view(torch.uint8)


def _by_arithmetic(scope: Scope, node: Any, name: str, q: Qparams) -> str:
    """Integers that come from outside, such as the bytes of an image: Cast, Sub and Mul, which are exact as well."""
    rewrite = scope.rewrite
    if not q.per_tensor:
        what = f"one scale for {shown(name)}, which the model does not make itself"
        raise scope.error(node, what, _words(q), "Give the model float inputs.")
    key = (name, "arithmetic", *q.key())
    if (made := scope.once(key)) is not None:
        return made
    code = next(code for code, dtype in FLOATS.items() if dtype is q.scale.dtype)
    made = scope.emit("Cast", [name], rewrite.new_name(f"{name}_float"), f"{name}_Cast", to=code)
    for op, value in (("Sub", float(q.zero_point)), ("Mul", float(q.scale))):
        number = rewrite.number(f"{name}_{op.lower()}", value, q.scale.dtype)
        made = scope.emit(op, [made, number], rewrite.new_name(f"{name}_float"), f"{name}_{op}")
    rewrite.report.note(rewrite.label(node), f"{name} comes in as integers: made float by Cast, Sub and Mul")
    return scope.remember(key, made)
