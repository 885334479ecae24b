"""Scales that are computed when the model runs: DynamicQuantizeLinear and the sums that they are multiplied into."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qdeq.onnx_graphs.attributes import argument, number_of
from qdeq.onnx_graphs.floats import float_of
from qdeq.onnx_graphs.ops.handler import Handler, put_float
from qdeq.onnx_graphs.package import shown
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Accumulator, Alias, Constant, DynamicScale, Rounded, Scope
from qdeq.onnx_graphs.stored import CODES, FLOATS

__all__ = ["HANDLERS", "dynamic_qparams", "follow"]


def _dynamic(key: str, zero_point: str) -> Qparams:
    nothing = torch.zeros(())
    return Qparams(nothing, nothing.long(), CODES["uint8"], names=(key, zero_point), dynamic=key)


def quantize(scope: Scope, node: Any) -> None:
    """DynamicQuantizeLinear(x) -> integers, scale, zero point."""
    if len(node.output) != 3:
        raise scope.error(node, "three outputs", str(len(node.output)), "The model is damaged: get a fresh copy.")
    ints, scale, zero_point = node.output
    twin = scope.plain(node, node.input[0])
    if scope.rewrite.mode == "fake_quant":
        made = scope.rewrite.new_name(ints)
        scope.copy(node, [twin], [made, scale, zero_point])
        rounded = scope.rewrite.new_name(f"{twin}_rounded")
        twin = scope.emit("DequantizeLinear", [made, scale, zero_point], rounded, f"{rounded}_Dequantize")
    scope.values |= {ints: Rounded(twin, _dynamic(scale, zero_point)), scale: DynamicScale(scale)}
    # Who reads the zero point alone gets the error of an operator that is not known on quantized values.
    scope.values[zero_point] = DynamicScale(scale)


def dynamic_qparams(scope: Scope, node: Any, scale: str, zero_point: str) -> Qparams:
    """Scale and zero point that a node got from DynamicQuantizeLinear."""
    value, other = scope.value(scale), scope.value(zero_point) if zero_point else None
    if isinstance(value, DynamicScale) and isinstance(other, DynamicScale) and value.key == other.key:
        return _dynamic(value.key, zero_point)
    what = f"the scale and zero point of one DynamicQuantizeLinear, {shown(scale)}"
    raise scope.error(node, what, shown(zero_point), "The model is damaged: get a fresh copy.")


def sums(scope: Scope, node: Any) -> None:
    """ConvInteger or MatMulInteger(x, w, z of x, z of w): int32, to be multiplied by both scales."""
    value = scope.value(node.input[0])
    zero_point = argument(node, 2)
    if not isinstance(value, Rounded) or not value.q.dynamic:
        what = f"{shown(node.input[0])} from DynamicQuantizeLinear"
        raise scope.error(node, what, "integers of another origin", "Export the model with DynamicQuantizeLinear.")
    dynamic_qparams(scope, node, value.q.dynamic, zero_point)
    scope.values[node.output[0]] = Accumulator(node, scope, value.twin, value.q.dynamic)


def follow(scope: Scope, node: Any) -> bool:
    """Take a Cast or Mul of sums and dynamic scales; False if the node reads none."""
    values = [scope.value(name) for name in node.input if name]
    first: Any = values[0] if values else None
    if not any(isinstance(value, Accumulator | DynamicScale) for value in values):
        return False
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):
        if number_of(scope.rewrite, node, "to", 0) in FLOATS:
            scope.values[node.output[0]] = first
            return True
    elif node.op_type == "Mul" and node.domain in ("", "ai.onnx") and len(values) == 2:
        return _multiply(scope, node, values)
    what = "a Cast to float, or a Mul with the scales of weight and activation"
    raise scope.error(node, what, f"{node.op_type[:60]} of sums or dynamic scales", "Report this pattern.")


def _multiply(scope: Scope, node: Any, values: list[Any]) -> bool:
    result: Any = None
    if any(isinstance(value, Accumulator) for value in values):
        values.sort(key=lambda value: not isinstance(value, Accumulator))
    elif isinstance(values[1], DynamicScale):
        values.reverse()
    first, second = values
    if isinstance(second, Constant):
        factor = scope.numbers(node, second.stored.name, "scale") if second.stored.code in FLOATS else None
        if factor is not None:
            result = replace(first, factor=_product(first.factor, factor))
    elif isinstance(second, DynamicScale) and isinstance(first, Accumulator) and second.key == first.key:
        result = replace(first, key="", factor=_product(first.factor, second.factor))
    if result is None:
        what = "sums multiplied by the scale of their own activation and a constant one"
        raise scope.error(node, what, "other factors", "Report this pattern.")
    if isinstance(result, Accumulator) and not result.key and result.factor is not None:
        _finish(scope, node, result)
    else:
        scope.values[node.output[0]] = result
    return True


def _product(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one * other


def _finish(scope: Scope, node: Any, done: Accumulator) -> None:
    """All scales are there: the float operator on the float weight."""
    maker, factor = done.node, done.factor
    assert factor is not None
    conv = maker.op_type == "ConvInteger"
    axis = None
    if factor.numel() == 1:
        factor = factor.reshape(())
    else:
        axis = 0 if conv else -1
        wanted = [at for at, size in enumerate(factor.shape) if size > 1]
        behind = len(factor.shape) - wanted[0] - 1
        if len(wanted) > 1 or (behind < 1 if conv else behind != 0):
            what = "one scale for each output channel"
            raise scope.error(node, what, f"scales of shape {tuple(factor.shape)}", "The model is damaged.")
        factor = factor.reshape(-1)
    zeros, code = torch.zeros((), dtype=torch.int64), None
    if argument(maker, 3):
        stored = scope.constant(maker, maker.input[3], "zero point")
        zeros, code = stored.integers(), stored.code
        zeros = zeros.reshape(()) if zeros.numel() == 1 else zeros.reshape(-1)
    if zeros.shape != factor.shape and zeros.numel() > 1:
        if factor.dim() == 0:
            factor, axis = factor.expand(zeros.shape), 0 if conv else -1
        else:
            raise scope.error(maker, f"{factor.numel()} zero points", str(zeros.numel()), "The model is damaged.")
    q = Qparams(factor, zeros.expand(factor.shape), code, axis, names=("of the Mul behind", argument(maker, 3)))
    weight = float_of(done.scope, maker, maker.input[1], q, factor.dtype)
    op = "Conv" if conv else "MatMul"
    made = put_float(scope, maker, op, [done.twin, weight], scope.rewrite.new_name(node.output[0]))
    scope.values[node.output[0]] = Alias(made)


HANDLERS: dict[tuple[str, str], Handler] = {
    ("", "DynamicQuantizeLinear"): quantize,
    ("", "ConvInteger"): sums,
    ("", "MatMulInteger"): sums,
}
