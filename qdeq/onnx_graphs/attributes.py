"""Attributes and inputs of a node, checked for their type."""

from __future__ import annotations

from typing import Any

from qdeq.errors import refuse
from qdeq.onnx_graphs.rewrite import Rewrite

__all__ = ["argument", "ints_of", "number_of"]

_INT, _INTS = 2, 7  # AttributeProto.AttributeType


def argument(node: Any, at: int) -> str:
    """The name of an input; empty for one that is not there."""
    return str(node.input[at]) if at < len(node.input) else ""


def number_of(rewrite: Rewrite, node: Any, name: str, default: int) -> int:
    """An integer attribute."""
    for attribute in node.attribute:
        if attribute.name == name:
            if attribute.type != _INT:
                refuse(rewrite.place(node), f"an integer {name}", "another type", "The model is damaged.")
            return int(attribute.i)
    return default


def ints_of(rewrite: Rewrite, node: Any, name: str) -> list[int] | None:
    """An attribute of integers; None if it is not there."""
    for attribute in node.attribute:
        if attribute.name == name:
            if attribute.type != _INTS:
                refuse(rewrite.place(node), f"integers {name}", "another type", "The model is damaged.")
            return list(attribute.ints)
    return None
