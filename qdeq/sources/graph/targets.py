"""What the functions and methods of a graph are called, and which of them quantize, dequantize or take a weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qdeq.sources.graph.schema import operator_of
from qdeq.words import dtype_name

__all__ = [
    "QUANTIZE",
    "QUANTIZE_CHANNELS",
    "QUANTIZE_DYNAMIC",
    "asks_for_integers",
    "dtype_of",
    "is_dequantize",
    "is_half",
    "operation_name",
    "quantizing",
    "takes_as_weight",
    "why_not_on_floats",
]

QUANTIZE, QUANTIZE_CHANNELS = "quantize_per_tensor", "quantize_per_channel"
QUANTIZE_DYNAMIC = "quantize_per_tensor_dynamic"
_QUANTIZING = {
    QUANTIZE: ("input", "scale", "zero_point", "dtype"),
    QUANTIZE_CHANNELS: ("input", "scales", "zero_points", "axis", "dtype"),
    QUANTIZE_DYNAMIC: ("input", "dtype", "reduce_range"),
}
# How TorchScript writes dtypes.
_DTYPES = {12: "qint8", 13: "quint8", 14: "qint32"}
_INTEGER_METHODS = frozenset(
    {"int_repr", "q_scale", "q_zero_point", "qscheme", "q_per_channel_scales", "q_per_channel_zero_points"}
    | {"q_per_channel_axis"}
)
_WEIGHTED = frozenset(
    {"linear", "embedding", "embedding_bag"}
    | {f"{kind}{size}d" for kind in ("conv", "conv_transpose") for size in (1, 2, 3)}
)
_PLAIN_MODULES = ("torch", "operator", "_operator", "builtins", "math", "torchvision")


def operation_name(node: fx.Node) -> str:
    """The function's or method's own name, without its home."""
    if isinstance(node.target, str):
        return node.target.rpartition("::")[2]
    own = operator_of(node.target).rpartition("::")[2]
    return own or str(getattr(node.target, "__name__", node.target))


def quantizing(node: fx.Node) -> tuple[str, dict[str, Any]] | None:
    """Which of torch's quantizing functions a node calls, and its arguments by name; None for any other node."""
    if node.op != "call_function":
        return None
    name = operation_name(node)
    names = _QUANTIZING.get(name)
    if names is None or not (operator_of(node.target) == f"aten::{name}" or node.target is getattr(torch, name)):
        return None
    given = {"input" if key == "self" else key: value for key, value in node.kwargs.items()}
    return name, {**dict(zip(names, node.args, strict=False)), **given}


def is_dequantize(node: fx.Node) -> bool:
    """Whether a node dequantizes its first argument."""
    if node.op == "call_method":
        return node.target == "dequantize"
    of_torch = node.target is torch.dequantize or operator_of(node.target) == "aten::dequantize"
    return node.op == "call_function" and of_torch


def is_half(node: fx.Node) -> bool:
    """Whether a node is what torch writes for a quantization to float16: a cast that only ``dequantize`` follows."""
    to_half = node.op == "call_method" and node.target == "to" and node.args[1:2] == (torch.float16,)
    return to_half and bool(node.users) and all(is_dequantize(user) for user in node.users)


def dtype_of(value: Any) -> str:
    """The name, in torch's words, of a quantized dtype."""
    return dtype_name(value) if isinstance(value, torch.dtype) else _DTYPES.get(value, "")


def takes_as_weight(user: fx.Node, value: fx.Node) -> bool:
    """Whether a node is a layer's function and ``value`` its weight."""
    if user.op != "call_function" or operation_name(user) not in _WEIGHTED:
        return False
    return user.args[1:2] == (value,) or user.kwargs.get("weight") is value


def asks_for_integers(node: fx.Node) -> bool:
    """Whether a node asks a quantized tensor for its integers, scales or zero points."""
    return node.op in ("call_method", "call_function") and operation_name(node) in _INTEGER_METHODS


def why_not_on_floats(node: fx.Node) -> str:
    """Why an operation on quantized values has no known meaning on floats; empty for one that has."""
    if asks_for_integers(node):
        return "a float tensor has no integers"
    if node.op != "call_function":
        return ""
    operator = operator_of(node.target)
    if operator:
        return "" if operator.partition("::")[0] in ("aten", "prim") else f"{operator} is not one of torch's"
    home = str(getattr(node.target, "__module__", None) or "torch")
    return "" if home.partition(".")[0] in _PLAIN_MODULES else f"{home}.{operation_name(node)} is not one of torch's"
