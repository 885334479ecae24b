"""The one tracer of forwards, torch.fx: what a module runs on whose output."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.tree.walk import (
    ATOMS,
    MODULE_INTERNALS,
    children,
    every_module,
    is_half_made,
    is_library_module,
    plain_values,
    shallow_copy,
)

__all__ = ["Traces", "trace"]


class _Tracer(fx.Tracer):
    def __init__(self, leaf: Callable[[nn.Module, str], bool], modules: tuple[Any, ...]) -> None:
        super().__init__(autowrap_modules=modules)
        self._leaf = leaf

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self._leaf(m, module_qualified_name)


def trace(module: nn.Module, leaf: Callable[[nn.Module, str], bool]) -> fx.Graph:
    """Trace the forward of ``module`` and of the modules in it that are no leaves; the random state stays.

    Args:
        module: is run on values without data; its own attributes may change.
        leaf: whether a module of that dotted name is recorded as one call.

    Raises:
        Exception: whatever the forward or torch.fx raises.

    """
    with torch.random.fork_rng(devices=[]):
        try:
            return _Tracer(leaf, ()).trace(module)
        except Exception:  # noqa: BLE001 (it may have called math.sqrt; few do, and wrapping all of math costs each trace)
            return _Tracer(leaf, (math,)).trace(module)


class Traces:
    """The forwards of one model, each traced once. The modules stay as they are.

    Args:
        model: in which all modules lie that are asked about.

    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._graphs: dict[int, fx.Graph | str] = {}

    @functools.cached_property
    def whole(self) -> fx.Graph | None:
        """What the model runs from end to end, modules of torch and those without children as single calls, no hooks.

        None where it cannot be traced as a whole; then parts of it may.
        """
        if any("forward" in vars(module) and not _is_leaf(module) for _, module in every_module(self._model)):
            return None
        try:
            return trace(_stand_in(self._model, _is_leaf), _is_leaf)
        except Exception:  # noqa: BLE001 (the user's forward may raise anything; then nothing is proven)
            return None

    def of(self, owner: nn.Module) -> fx.Graph | str:
        """The trace of one module's own forward, its children as single calls; a string says why that is impossible."""
        if id(owner) not in self._graphs:
            self._graphs[id(owner)] = self._trace(owner)
        return self._graphs[id(owner)]

    def _trace(self, owner: nn.Module) -> fx.Graph | str:
        if "forward" in owner.__dict__:
            return "its owner has a forward of its own, beside that of its class"
        if type(owner).forward is nn.Sequential.forward:
            return _chain(owner)
        try:
            return trace(_stand_in(owner, lambda module, name: module is not owner), lambda module, name: True)
        except Exception as error:  # noqa: BLE001 (the user's forward may raise anything; then nothing is proven)
            return f"its owner's forward cannot be traced ({type(error).__name__})"


def _is_leaf(module: nn.Module, name: str = "") -> bool:
    """Whether a trace of a whole model has a module as a single call."""
    # torch.ao's fused layers before conversion are Sequentials.
    library = is_library_module(module) and not isinstance(module, nn.Sequential)
    return library or not children(module)


def _chain(owner: nn.Module) -> fx.Graph:
    """What tracing a Sequential gives."""
    graph = fx.Graph()
    value = graph.placeholder("input")
    for name in owner._modules:
        value = graph.call_module(name, (value,))
    graph.output(value)
    return graph


def _stand_in(module: nn.Module, shared: Callable[[nn.Module, str], bool], memo: dict[int, Any] | None = None) -> Any:
    """A copy of a module to trace: its forward is the user's code and may change what it holds; hooks do not run.

    Args:
        module: is left alone.
        shared: whether a module of that name in its owner stands for itself.
        memo: id of an object -> its copy.

    """
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    memo[id(module)] = copied = shallow_copy(module)
    copied._forward_hooks.clear()
    copied._forward_pre_hooks.clear()
    owned: list[dict[str, Any]] = [copied._parameters, copied._buffers]
    for tensors in owned:
        tensors.update({name: copy.deepcopy(value, memo) for name, value in tensors.items()})
    for name, child in children(module):
        # A half made child has nothing that a trace needs; its name is all that is asked for.
        made = nn.Module() if is_half_made(child) else child
        copied._modules[name] = made if shared(child, name) else _stand_in(child, shared, memo)
    # Modules and tensors in plain attributes are called by their own names, or by none.
    kept = {id(value): value for _, value in plain_values(module) if isinstance(value, nn.Module | Tensor)}
    for name in vars(module).keys() - MODULE_INTERNALS:
        if type(getattr(module, name)) not in ATOMS:
            copied.__dict__[name] = copy.deepcopy(getattr(module, name), kept | memo)
    return copied
