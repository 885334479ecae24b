"""Operators of com.microsoft that hold integers in layouts of their own, or quantize inside."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qdeq.onnx_graphs.attributes import argument, number_of
from qdeq.onnx_graphs.floats import float_of
from qdeq.onnx_graphs.ops.handler import Handler, put_float
from qdeq.onnx_graphs.ops.qlinear import add_bias
from qdeq.onnx_graphs.package import shown
from qdeq.onnx_graphs.scope import Scope
from qdeq.onnx_graphs.stored import CODES, FLOATS, TYPES, Stored, unpack_integers
from qdeq.onnx_graphs.weights import FloatWeight, Rows

__all__ = ["HANDLERS"]

_DAMAGED = "The model is damaged: get a fresh copy."


def dynamic_matmul(scope: Scope, node: Any) -> None:
    """DynamicQuantizeMatMul(A, B, s of B, z of B, bias): A is rounded inside, B holds integers."""
    q = scope.qparams(node, argument(node, 2), argument(node, 3), -1)
    weight = float_of(scope, node, argument(node, 1), q, q.scale.dtype)
    _rounds_inside(scope, node)
    add_bias(scope, node, [scope.plain(node, node.input[0]), weight], 4)


def attention(scope: Scope, node: Any) -> None:
    """QAttention(x, w, bias, s of x, s of w, mask, z of x, z of w, past, ...) -> Attention(x, w, bias, mask, past)."""
    made = []
    for at, axis in ((0, None), (1, -1)):
        q = scope.qparams(node, argument(node, at + 3), argument(node, at + 6), axis)
        made.append(float_of(scope, node, argument(node, at), q, q.scale.dtype))
    rest = [scope.plain(node, argument(node, at)) for at in (2, 5, 8)]
    inputs = [*made, *rest]
    while not inputs[-1]:
        inputs.pop()
    drop = [a.name for a in node.attribute if a.name not in _ATTENTION]
    put_float(scope, node, "Attention", inputs, node.output[0], drop=drop, domain="com.microsoft")
    scope.nodes[-1].output.extend(node.output[1:])


_ATTENTION = ("num_heads", "unidirectional", "scale", "mask_filter_value", "do_rotary", "past_present_share_buffer")


def embed_layer_norm(scope: Scope, node: Any) -> None:
    """QEmbedLayerNormalization: five tables with their scales and zero points behind."""
    tables = []
    for at in range(5):
        name, scale, zero = (argument(node, offset + at) for offset in (2, 8, 13))
        if name:
            q = scope.qparams(node, scale, zero)
            name = float_of(scope, node, name, q, q.scale.dtype)
        tables.append(name)
    inputs = [*(scope.plain(node, argument(node, at)) for at in (0, 1)), *tables]
    inputs.append(scope.plain(node, argument(node, 7)))
    while not inputs[-1]:
        inputs.pop()
    put_float(scope, node, "EmbedLayerNormalization", inputs, node.output[0], domain="com.microsoft")
    scope.nodes[-1].output.extend(node.output[1:])


def _rounds_inside(scope: Scope, node: Any) -> None:
    if scope.rewrite.mode != "drop":
        reason = "it rounds its input by itself, with a scale computed at every call"
        scope.rewrite.report.leave_uncovered(scope.rewrite.label(node), node.op_type, reason)


def lstm(scope: Scope, node: Any) -> None:
    """DynamicQuantizeLSTM(X, W, R, B, lengths, h, c, P, s of W, z of W, s of R, z of R) -> LSTM.

    Its W and R lie transposed, (directions, inputs, 4 * hidden); one scale, one for each direction, or one for each
    of its columns.
    """
    inputs = [scope.plain(node, argument(node, 0))]
    for at, scale_at in ((1, 8), (2, 10)):
        inputs.append(_lstm_weight(scope, node, at, scale_at))
    inputs += [scope.plain(node, argument(node, at)) for at in range(3, 8)]
    while not inputs[-1]:
        inputs.pop()
    _rounds_inside(scope, node)
    put_float(scope, node, "LSTM", inputs, node.output[0])
    scope.nodes[-1].output.extend(node.output[1:])
    for output in node.output[1:]:
        scope.producers[output] = scope.nodes[-1]


def _lstm_weight(scope: Scope, node: Any, at: int, scale_at: int) -> str:
    ints = scope.constant(node, argument(node, at), "weight")
    scale, zero = argument(node, scale_at), argument(node, scale_at + 1)
    found = scope.constant(node, scale, "scale")
    zeros = scope.constant(node, zero, "zero point") if zero else None
    if len(ints.shape) != 3 or found.code not in FLOATS or ints.code not in (CODES["int8"], CODES["uint8"]):
        got = f"{TYPES[ints.code].name} of shape {ints.shape}"
        raise scope.error(node, f"three dimensions of 8-bit integers in {shown(ints.name)}", got, _DAMAGED)
    if zeros is not None and zeros.code != ints.code:
        what = f"a zero point {shown(zero)} of the type of {shown(ints.name)}, {TYPES[ints.code].name}"
        raise scope.error(node, what, TYPES[zeros.code].name, _DAMAGED)
    directions, inputs, columns = ints.shape
    wanted = ((), (1,), (directions,), (directions, 1), (directions, columns))
    scales = found.read()
    zero_points = zeros.integers() if zeros else torch.zeros(found.shape, dtype=torch.int64)
    for what, values in ((scale, scales), (zero, zero_points)):
        if tuple(values.shape) not in wanted:
            raise scope.error(node, f"{shown(what)} of a shape in {wanted}", str(tuple(values.shape)), _DAMAGED)

    def rows() -> Rows:
        values = ints.read()

        def row(start: int, stop: int) -> Tensor:
            s, z = (_per_direction(v, directions)[start:stop] for v in (scales.float(), zero_points.int()))
            return ((values[start:stop].int() - z).float() * s).transpose(1, 2).contiguous()

        return row

    key = (ints.name, scale, zero, "lstm")
    made = scope.rewrite.known(key)
    if made is not None:
        return made
    weight = FloatWeight(
        scope.rewrite.new_name(ints.name), ints.name, ints.where, (directions, columns, inputs), scales.dtype,
        TYPES[ints.code].name, scales, zero_points, None, ints.bytes, rows=rows, row_step=1,
        note="transposed as LSTM has it",
    )  # fmt: skip
    return scope.rewrite.add(key, weight)


def _per_direction(values: Tensor, directions: int) -> Tensor:
    if values.dim() == 2:
        return values[:, None, :]
    return values.reshape(-1, 1, 1).expand(directions, 1, 1)


def matmul_nbits(scope: Scope, node: Any) -> None:
    """MatMulNBits(A, B, scales, zero points, g_idx, bias) -> MatMul with the weight transposed.

    B holds, for each of N outputs, K values in blocks of ``block_size``, packed low bits first; zero points lie packed
    in the same way, or as floats; without them it is ``2 ** (bits - 1)``.
    """
    sizes = [number_of(scope.rewrite, node, name, 0) for name in ("K", "N", "bits", "block_size")]
    columns, outputs, bits, block = sizes
    if argument(node, 4):
        raise scope.error(node, "columns in their own order", "a g_idx", "Quantize the model without act_order.")
    if min(columns, outputs) < 1 or bits not in (2, 4, 8) or block < 8:
        what = "sizes K and N of at least 1, 2, 4 or 8 bits and blocks of at least 8"
        raise scope.error(node, what, ", ".join(map(str, sizes)), _DAMAGED)
    ints = scope.constant(node, argument(node, 1), "weight")
    scales = scope.constant(node, argument(node, 2), "scale")
    zeros = scope.constant(node, argument(node, 3), "zero point") if argument(node, 3) else None
    key = (ints.name, scales.name, zeros and zeros.name, "bits")
    name = scope.rewrite.known(key)
    if name is None:
        weight = _bits_weight(scope, node, ints, scales, zeros, (columns, outputs, bits, block))
        name = scope.rewrite.add(key, weight)
    if number_of(scope.rewrite, node, "accuracy_level", 0) == 4:
        _rounds_inside(scope, node)
    add_bias(scope, node, [scope.plain(node, node.input[0]), name], 5)


def _bits_weight(
    scope: Scope, node: Any, ints: Stored, scales: Stored, zeros: Stored | None, sizes: tuple[int, int, int, int]
) -> FloatWeight:
    columns, outputs, bits, block = sizes
    blocks = -(-columns // block)
    zero_bytes = -(-blocks * bits // 8)
    _check_size(scope, node, ints, outputs * blocks * block * bits // 8, {"uint8"})
    _check_size(scope, node, scales, outputs * blocks, {"float32", "float16", "bfloat16"})
    if zeros is not None:
        packed = TYPES[zeros.code].name == "uint8"
        _check_size(
            scope, node, zeros, outputs * (zero_bytes if packed else blocks), {"uint8", TYPES[scales.code].name}
        )

    def rows() -> Rows:
        values, scale = ints.read().reshape(outputs, blocks, -1), scales.read().reshape(outputs, blocks, 1).float()
        zero = _bits_zeros(zeros, outputs, blocks, bits)

        def row(start: int, stop: int) -> Tensor:
            first, last = start // block, -(-stop // block)
            part = _unpack(values[:, first:last].contiguous(), bits).reshape(outputs, last - first, block)
            floats = (part.float() - zero[:, first:last]) * scale[:, first:last]
            return floats.reshape(outputs, -1)[:, : stop - start].t().contiguous()

        return row

    known = scales.read().reshape(-1)
    ends = torch.stack([known.min(), known.max()]) if known.numel() else known
    return FloatWeight(
        scope.rewrite.new_name(ints.name), ints.name, ints.where, (columns, outputs), known.dtype, f"uint{bits}",
        ends, torch.empty(0), None, ints.bytes, rows=rows, row_step=block, note=f"in blocks of {block}, transposed",
    )  # fmt: skip


def _check_size(scope: Scope, node: Any, stored: Stored, count: int, kinds: set[str]) -> None:
    kind, got = TYPES[stored.code].name, math.prod(stored.shape)
    if got != count or kind not in kinds:
        what = f"{count} values of {' or '.join(sorted(kinds))} in {shown(stored.name)}"
        raise scope.error(node, what, f"{got} of {kind}", _DAMAGED)


def _bits_zeros(zeros: Stored | None, outputs: int, blocks: int, bits: int) -> Tensor:
    if zeros is None:
        return torch.tensor(float(2 ** (bits - 1))).expand(outputs, blocks, 1)
    values = zeros.read()
    if values.dtype == torch.uint8:
        values = _unpack(values.reshape(outputs, -1), bits)[:, :blocks]
    return values.reshape(outputs, blocks, 1).float()


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """Unsigned integers out of bytes, low bits first; rows stay rows."""
    if bits == 8:
        return packed
    rows = packed.shape[0]
    code = CODES[f"uint{bits}"]
    return unpack_integers(packed.reshape(-1), code, (rows, packed.numel() // rows * (8 // bits)))


HANDLERS: dict[tuple[str, str], Handler] = {
    ("com.microsoft", "DynamicQuantizeMatMul"): dynamic_matmul,
    ("com.microsoft", "QAttention"): attention,
    ("com.microsoft", "QEmbedLayerNormalization"): embed_layer_norm,
    ("com.microsoft", "DynamicQuantizeLSTM"): lstm,
    ("com.microsoft", "MatMulNBits"): matmul_nbits,
}
