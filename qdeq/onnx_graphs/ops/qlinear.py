"""Operators that take and give quantized integers: QLinearConv and its kin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from qdeq.onnx_graphs.attributes import argument, ints_of, number_of
from qdeq.onnx_graphs.floats import float_in, float_of
from qdeq.onnx_graphs.ops.handler import Handler, bias_of, put_float, put_rounded
from qdeq.onnx_graphs.scope import Scope

__all__ = ["HANDLERS"]

_CHANNELS_LAST = "channels_last"


class _Plain(NamedTuple):
    """An operator that does on integers what ``op`` does on floats."""

    op: str
    inputs: tuple[int, ...]  # where the inputs are that scale and zero point follow
    scale: int  # where the output's scale is
    axes: tuple[int | None, ...] = ()  # of the channels of each input, where it may have several scales
    before: tuple[int, ...] = ()  # inputs that are not quantized, and come first


_TABLE = {
    "QLinearAdd": _Plain("Add", (0, 3), 6),
    "QLinearMul": _Plain("Mul", (0, 3), 6),
    "QLinearMatMul": _Plain("MatMul", (0, 3), 6, (None, -1)),
    "QLinearSigmoid": _Plain("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": _Plain("LeakyRelu", (0,), 3),
    "QLinearAveragePool": _Plain("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": _Plain("GlobalAveragePool", (0,), 3),
    "QLinearWhere": _Plain("Where", (1, 4), 7, before=(0,)),
}


def _check_layout(scope: Scope, node: Any) -> None:
    if number_of(scope.rewrite, node, _CHANNELS_LAST, 0):
        remedy = "Save the model before ONNX Runtime optimises its layout."
        raise scope.error(node, "channels in dimension 1", f"{_CHANNELS_LAST}=1", remedy)


def plain(scope: Scope, node: Any) -> None:
    """An operator of the table."""
    rule = _TABLE[node.op_type]
    _check_layout(scope, node)
    axes = rule.axes or (None,) * len(rule.inputs)
    inputs = [scope.plain(node, node.input[at]) for at in rule.before]
    inputs += [float_in(scope, node, at, axis)[0] for at, axis in zip(rule.inputs, axes, strict=True)]
    put_rounded(scope, node, rule.op, inputs, rule.scale, drop=(_CHANNELS_LAST,))


def conv(scope: Scope, node: Any) -> None:
    """QLinearConv(x, s, z, w, s, z, output's s, z, bias): channels of the weight in dimension 0."""
    _check_layout(scope, node)
    x, qx = float_in(scope, node, 0)
    w, qw = float_in(scope, node, 3, axis=0)
    bias = bias_of(scope, node, 8, qx.scale * qw.scale)
    put_rounded(scope, node, "Conv", [x, w, *bias], 6, drop=(_CHANNELS_LAST,))


def gemm(scope: Scope, node: Any) -> None:
    """QGemm(A, s, z, B, s, z, C, output's s, z): float where the output's scale is not there."""
    a, qa = float_in(scope, node, 0)
    transposed = number_of(scope.rewrite, node, "transB", 0)
    b, qb = float_in(scope, node, 3, axis=0 if transposed else 1)
    alpha = next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 1.0)
    bias = bias_of(scope, node, 6, qa.scale * qb.scale * alpha)
    if argument(node, 7):
        put_rounded(scope, node, "Gemm", [a, b, *bias], 7)
    else:
        put_float(scope, node, "Gemm", [a, b, *bias], node.output[0])


def concat(scope: Scope, node: Any) -> None:
    """QLinearConcat(output's s, z, then each input with its s and z)."""
    inputs = [float_in(scope, node, at)[0] for at in range(2, len(node.input), 3)]
    put_rounded(scope, node, "Concat", inputs, 0)


def reduce_mean(scope: Scope, node: Any) -> None:
    """QLinearReduceMean: from opset 18 on ReduceMean has its axes as an input."""
    axes = ints_of(scope.rewrite, node, "axes")
    inputs = [float_in(scope, node, 0)[0]]
    by_input = scope.rewrite.opset >= 18 and axes is not None
    if by_input:
        inputs.append(scope.rewrite.constant("axes", np.array(axes, dtype=np.int64)))
    put_rounded(scope, node, "ReduceMean", inputs, 3, drop=("axes",) if by_input else ())


def softmax(scope: Scope, node: Any) -> None:
    """QLinearSoftmax: ``opset`` says whether one axis is meant (13 and later) or all from it on."""
    meant, axis = number_of(scope.rewrite, node, "opset", 13), number_of(scope.rewrite, node, "axis", -1)
    if (meant < 13) != (scope.rewrite.opset < 13) and axis != -1:
        got = f"axis {axis} as of opset {meant}"
        raise scope.error(
            node, f"a Softmax of opset {scope.rewrite.opset}, or axis -1", got, "Convert the model's opset."
        )
    put_rounded(scope, node, "Softmax", [float_in(scope, node, 0)[0]], 3, drop=("opset",))


def integer_to_float(scope: Scope, node: Any) -> None:
    """MatMulIntegerToFloat(A, B, s of A, s of B, z of A, z of B, bias): constant scales."""
    made = []
    for at, axis in ((0, None), (1, -1)):
        q = scope.qparams(node, argument(node, at + 2), argument(node, at + 4), axis)
        made.append(float_of(scope, node, argument(node, at), q, q.scale.dtype))
    add_bias(scope, node, made, 6)


def add_bias(scope: Scope, node: Any, inputs: list[str], at: int) -> None:
    """A MatMul, and an Add where the operator had a float bias among its inputs."""
    bias = argument(node, at)
    if not bias:
        put_float(scope, node, "MatMul", inputs, node.output[0], drop=[a.name for a in node.attribute])
        return
    sums = scope.rewrite.new_name(f"{node.output[0]}_sums")
    put_float(scope, node, "MatMul", inputs, sums, drop=[a.name for a in node.attribute])
    scope.emit("Add", [sums, scope.plain(node, bias)], node.output[0], f"{scope.rewrite.label(node)}_Add")


HANDLERS: dict[tuple[str, str], Handler] = {
    **{("com.microsoft", op): plain for op in _TABLE},
    ("", "QLinearMatMul"): plain,
    ("", "QLinearConv"): conv,
    ("com.microsoft", "QLinearConv"): conv,
    ("com.microsoft", "QGemm"): gemm,
    ("com.microsoft", "QLinearConcat"): concat,
    ("com.microsoft", "QLinearReduceMean"): reduce_mean,
    ("com.microsoft", "QLinearSoftmax"): softmax,
    ("com.microsoft", "MatMulIntegerToFloat"): integer_to_float,
}
