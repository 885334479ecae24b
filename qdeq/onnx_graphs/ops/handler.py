"""What rewrites one operator, and what these functions share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from qdeq.onnx_graphs.attributes import argument
from qdeq.onnx_graphs.floats import float_of
from qdeq.onnx_graphs.outputs import round_output
from qdeq.onnx_graphs.package import onnx_library
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.scope import Scope
from qdeq.onnx_graphs.stored import CODES

__all__ = ["Handler", "bias_of", "put_float", "put_rounded"]

Handler = Callable[[Scope, Any], None]
"""Rewrites a node: adds nodes to the scope, and says what the node's outputs stand for."""


def put_float(
    scope: Scope,
    node: Any,
    op: str,
    inputs: Sequence[str],
    output: str,
    *,
    drop: Collection[str] = (),
    domain: str = "",
) -> str:
    """Add the float operator ``op`` in the place of ``node``: its name and attributes, without those of ``drop``."""
    made = onnx_library().NodeProto()
    made.name, made.op_type, made.domain = node.name, op, domain
    made.input.extend(inputs)
    made.output.append(output)
    for attribute in node.attribute:
        if attribute.name not in drop:
            made.attribute.add().CopyFrom(attribute)
    scope.rewrite.report.replaced[scope.rewrite.label(node)] = (node.op_type, op)
    return scope.put(made)


def put_rounded(
    scope: Scope,
    node: Any,
    op: str,
    inputs: Sequence[str],
    scale_at: int,
    *,
    drop: Collection[str] = (),
    domain: str = "",
) -> None:
    """:func:`put_float` of an operator whose output is rounded by its inputs ``scale_at`` and the one behind."""
    twin = put_float(scope, node, op, inputs, scope.rewrite.new_name(node.output[0]), drop=drop, domain=domain)
    q = scope.qparams(node, argument(node, scale_at), argument(node, scale_at + 1), code=CODES["uint8"])
    round_output(scope, node, twin, node.output[0], q)


def bias_of(scope: Scope, node: Any, at: int, scale: torch.Tensor) -> list[str]:
    """The float twin of an int32 bias, whose scale is that of the sums; nothing if there is no bias."""
    name = argument(node, at)
    if not name:
        return []
    axis = None if scale.dim() == 0 else 0
    zeros = torch.zeros((), dtype=torch.int64).expand(scale.shape)
    q = Qparams(scale, zeros, CODES["int32"], axis, names=("of the sums", ""))
    return [float_of(scope, node, name, q, scale.dtype)]
