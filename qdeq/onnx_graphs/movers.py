"""Operators that only move or choose values: on integers they do what they do on the floats that these stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qdeq.onnx_graphs.attributes import ints_of, number_of
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Scope

__all__ = ["READERS", "data_inputs", "is_mover", "qparams_before", "wrong_mover"]

# Which inputs hold the values; None for all of them.
_DATA: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(
        (
            "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Gather",
            "GatherElements", "GatherND", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "MaxPool",
            "GlobalMaxPool", "ReduceMax", "ReduceMin", "ReverseSequence", "Compress", "TopK", "Resize", "Upsample",
        ),
        (0,),
    ),
    **dict.fromkeys(("Concat", "Max", "Min"), None),
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}  # fmt: skip

READERS = {"Shape", "Size", "ArgMax", "ArgMin"}
"""Operators whose output says something of the values' order or shape, and holds none of them."""

_KEEP_AXIS = {"Identity"}


def is_mover(node: Any) -> bool:
    """Whether an operator only moves or chooses values."""
    return node.domain in ("", "ai.onnx") and node.op_type in _DATA


def data_inputs(node: Any) -> list[int]:
    """Which inputs of a mover hold the values that it moves."""
    data = _DATA[node.op_type]
    return [at for at in (range(len(node.input)) if data is None else data) if at < len(node.input)]


def wrong_mover(scope: Scope, node: Any) -> str:
    """Why an operator that moves values computes new ones with these attributes; empty if it does not."""
    if node.op_type in ("Resize", "Upsample"):
        modes = [a.s for a in node.attribute if a.name == "mode"]
        if modes and modes[0] != b"nearest":
            return f"mode {modes[0][:20]!r}"
    if node.op_type.startswith("Scatter") and any(a.name == "reduction" and a.s != b"none" for a in node.attribute):
        return "a reduction"
    return ""


def qparams_before(scope: Scope, node: Any, q: Qparams, rank: int | None) -> Qparams:
    """Scale and zero point of a mover's input, where ``q`` are those of its output.

    Args:
        scope: of the node.
        node: the mover.
        q: of its output.
        rank: dimensions of its input; None if they are not known.

    Raises:
        QdeqValueError: ``q`` has an axis, and where that was in front of the node cannot be told.

    """
    if q.axis is None or node.op_type in _KEEP_AXIS:
        return q
    axis = q.axis
    if node.op_type == "Transpose":
        order = ints_of(scope.rewrite, node, "perm") or (None if rank is None else list(range(rank))[::-1])
        if order is not None and not q.block and -len(order) <= axis < len(order):
            return replace(q, axis=order[axis])
    if node.op_type == "Gather" and not q.block and 0 <= axis < number_of(scope.rewrite, node, "axis", 0):
        return q
    what = "scales per tensor, or a Transpose, behind which the axis of the channels is known"
    got = f"scales along axis {axis} behind {node.op_type}"
    raise scope.error(node, what, got, "Quantize this weight per tensor, or apply the operator before quantizing.")
