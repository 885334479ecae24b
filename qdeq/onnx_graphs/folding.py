"""Small constants that exporters compute with a few nodes: scales and zero points, never weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from qdeq.onnx_graphs.package import onnx_library
from qdeq.onnx_graphs.stored import CODES, TYPES, Stored

__all__ = ["fold"]

_MOST = 1 << 20  # values
_SAME_VALUES = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def fold(node: Any, output: str, read: Callable[[str], Stored | None]) -> Stored | None:
    """What a node computes of constants: casts, fills, and other shapes of the same values (these as one dimension).

    Args:
        node: a NodeProto.
        output: its output.
        read: gives the constant of a name.

    Returns:
        The constant; None where the node does anything else, or on anything else.

    """
    if node.domain not in ("", "ai.onnx") or not node.input or list(node.output) != [output]:
        return None
    op, source = node.op_type, read(node.input[0])
    if source is None or math.prod(source.shape) > _MOST or TYPES[source.code].bits < 8:
        return None
    values = source.read()
    if op in _SAME_VALUES:
        return _stored(output, source.code, values.reshape(-1) if values.dim() else values)
    if op == "Cast":
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
        if to not in TYPES or TYPES[to].bits < 8:
            return None
        return _stored(output, to, values.to(TYPES[to].storage))
    if op == "ConstantOfShape" and source.code == CODES["int64"] and values.dim() == 1:
        return _filled(node, output, values)
    return None


def _filled(node: Any, output: str, sizes: torch.Tensor) -> Stored | None:
    shape = sizes.tolist()
    if min(shape, default=0) < 0 or math.prod(shape) > _MOST:
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            array = onnx_library().numpy_helper.to_array(attribute.t).reshape(-1)
            code = attribute.t.data_type
            if array.size != 1 or code not in TYPES or TYPES[code].bits < 8:
                return None
            return _stored(output, code, torch.tensor(array.tolist()[0]).to(TYPES[code].storage).expand(shape))
    return _stored(output, CODES["float32"], torch.zeros(shape))


def _stored(name: str, code: int, values: torch.Tensor) -> Stored:
    data = values.contiguous().reshape(-1).view(torch.uint8)
    return Stored(name, name, code, tuple(values.shape), lambda: data)
