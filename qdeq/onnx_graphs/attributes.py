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
    found = _attribute(rewrite, node, name, _INT, f"an integer {name}")
    return default if found is None else int(found.i)


def ints_of(rewrite: Rewrite, node: Any, name: str) -> list[int] | None:
    """An attribute of integers; None if it is not there."""
    found = _attribute(rewrite, node, name, _INTS, f"integers {name}")
    return None if found is None else list(found.ints)


def _attribute(rewrite: Rewrite, node: Any, name: str, kind: int, wanted: str) -> Any:
    """The attribute of that name, which has to be of that type; None if it is not there."""
    for attribute in node.attribute:
        if attribute.name == name:
            if attribute.type != kind:
                refuse(rewrite.place(node), wanted, "another type", "The model is damaged.")
            return attribute
    return None
