"""Traces of forwards by torch.fx: which children a module runs on whose output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.tree.copying import copy_module
from qdeq.tree.walk import plain_values

__all__ = ["stand_in", "trace_calls"]


class _ShallowTracer(fx.Tracer):
    """Records the calls of child modules, whatever they are, without entering them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        del m, module_qualified_name
        return True


def trace_calls(owner: nn.Module) -> fx.Graph | str:
    """Trace the forward of ``owner`` with its children as single calls; a string says why that was impossible."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _ShallowTracer().trace(stand_in(owner))
    except Exception as error:  # noqa: BLE001 (the user's forward may raise anything; then nothing is proven)
        return f"its owner's forward cannot be traced ({type(error).__name__})"


def stand_in(owner: nn.Module) -> nn.Module:
    """A copy of ``owner`` that shares only its children: the forward is the user's code and may change its module."""
    attributes = [value for _, value in plain_values(owner)]
    # Without attributes that hold anything, no module below the children can be reached.
    below = owner.modules() if attributes else owner._modules.values()
    memo: dict[int, Any] = {id(child): child for child in below if child is not owner}
    # Modules and tensors with a history in plain attributes: the one holds weights, the other cannot be copied.
    memo |= {id(value): value for value in attributes if isinstance(value, nn.Module | Tensor)}
    return copy_module(owner, memo)
