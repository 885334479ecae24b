"""Roundings that are nodes of a graph: their names, how to tell such a graph, how to take them out again."""

from __future__ import annotations

from torch import fx, nn

from qdeq.grids.modules import PostProcess
from qdeq.tree.graphs import erase_calls
from qdeq.tree.post_process import CHILD

__all__ = ["drop_nodes", "node_name", "rounds_as_nodes"]


def node_name(number: int) -> str:
    """The name of a graph's rounding, as torch's prepared graphs call their observers."""
    return f"{CHILD}_{number}"


def rounds_as_nodes(module: nn.Module) -> bool:
    """Whether a module's graph has roundings as nodes: then all are, and no hook or changed forward adds one."""
    own = module.__dict__.get("_modules", {})
    return any(name.startswith(node_name(0)[:-1]) and isinstance(child, PostProcess) for name, child in own.items())


def drop_nodes(module: nn.Module) -> None:
    """Take the roundings out of a graph; any other module is left alone."""
    if rounds_as_nodes(module):
        erase_calls(module, lambda child: isinstance(child, PostProcess), _restore)


def _restore(child: nn.Module, producer: fx.Node) -> None:
    """The number of the code, in the place of the one on the grid that the int8 model takes."""
    number = getattr(child, "number", None)
    if number is not None:
        producer.args = tuple(number if isinstance(arg, int | float) else arg for arg in producer.args)
