"""The one tracer of forwards, torch.fx: what a module runs on whose output."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.tree.walk import children, every_module, plain_values

__all__ = ["Traces", "trace"]


class _Tracer(fx.Tracer):
    def __init__(self, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self._is_leaf = is_leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._is_leaf(m, module_qualified_name)


def trace(module: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> fx.Graph:
    """Trace the forward of ``module`` and of the modules in it that are no leaves; the random state stays.

    Args:
        module: is run on values without data; its own attributes may change.
        is_leaf: whether a module of that dotted name is recorded as one call.

    Raises:
        Exception: whatever the forward or torch.fx raises.

    """
    with torch.random.fork_rng(devices=[]):
        return _Tracer(is_leaf).trace(module)


class Traces:
    """The forwards of the modules of one model, each traced once, with its children as single calls."""

    def __init__(self) -> None:
        self._graphs: dict[int, tuple[nn.Module, fx.Graph | str]] = {}

    def of(self, owner: nn.Module) -> fx.Graph | str:
        """The trace of a module's own forward; a string says why that is impossible. The module stays as it is."""
        if id(owner) not in self._graphs:
            self._graphs[id(owner)] = owner, self._trace(owner)
        return self._graphs[id(owner)][1]

    def _trace(self, owner: nn.Module) -> fx.Graph | str:
        if "forward" in owner.__dict__:
            return "its owner has a forward of its own, beside that of its class"
        try:
            return trace(_stand_in(owner), lambda module, name: True)
        except Exception as error:  # noqa: BLE001 (the user's forward may raise anything; then nothing is proven)
            return f"its owner's forward cannot be traced ({type(error).__name__})"


def _stand_in(owner: nn.Module) -> nn.Module:
    """A copy of ``owner`` that shares only its children: the forward is the user's code and may change its module."""
    attributes = [value for _, value in plain_values(owner)]
    # Without attributes that hold anything, no module below the children can be reached.
    below = every_module(owner)[1:] if attributes else children(owner)
    # A half made child (see children) has nothing that a trace needs; its name is all that is asked for.
    memo: dict[int, Any] = {id(child): child if "_modules" in vars(child) else nn.Module() for _, child in below}
    # Modules and tensors with a history in plain attributes: the one holds weights, the other cannot be copied.
    memo |= {id(value): value for value in attributes if isinstance(value, nn.Module | Tensor)}
    return copy.deepcopy(owner, memo)
