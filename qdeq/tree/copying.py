"""Copies of modules as ``copy.deepcopy`` makes them, at a fraction of its cost.

A module holds about twenty containers of torch's own, nearly all of them empty, and deepcopy takes each apart through
its pickling protocol. Here a module of a plain class is copied attribute by attribute, with the same memo: shared
objects stay shared, and whatever is not plain goes to ``copy.deepcopy``.
"""

from __future__ import annotations

import copy
import copyreg
import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["ATOMS", "blank", "copied", "copy_module", "per_class"]

Module = TypeVar("Module", bound=nn.Module)
Answer = TypeVar("Answer")

ATOMS: frozenset[type] = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type(...), range, type, torch.dtype, torch.device}
    | {types.FunctionType, types.BuiltinFunctionType}
)
"""Types whose objects never change and hold nothing else: deepcopy gives the object itself."""

_CONTAINERS = frozenset({dict, OrderedDict, set, list})


def per_class(question: Callable[[type[Any]], Answer]) -> Callable[[type[Any]], Answer]:
    """Remember what a function says of each class; of the last few hundred, as classes may be made without end."""
    remembered: Any = functools.lru_cache(maxsize=512)(question)
    return remembered  # type: ignore[no-any-return] # mypy takes no class for hashable


def copy_module(module: Module, memo: dict[int, Any]) -> Module:
    """``copy.deepcopy(module, memo)``: the same result, ``memo`` read and extended in the same way."""
    known = memo.get(id(module))
    if known is not None:
        return known  # type: ignore[no-any-return] # what the memo holds for a module takes its place
    kind: Any = type(module)
    if not _is_plain(kind) or "__deepcopy__" in module.__dict__:
        return copy.deepcopy(module, memo)
    copied = kind.__new__(kind)
    memo[id(module)] = copied
    state: dict[str, Any] = module.__getstate__()  # type: ignore[no-untyped-call]
    for name, value in state.items():
        kind = type(value)
        if kind in ATOMS:
            continue
        if kind in _CONTAINERS and not value and (kind is not OrderedDict or not value.__dict__):
            known = memo.get(id(value))
            if known is None:
                memo[id(value)] = known = kind()
            state[name] = known
        else:
            state[name] = _copy_value(value, memo)
    copied.__setstate__(state)
    return copied  # type: ignore[no-any-return]


def copied(value: Any) -> Any:
    """``copy.deepcopy(value)``."""
    return _copy_value(value, {})


def _copy_value(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is dict:
        known = memo.get(id(value))
        if known is None:
            memo[id(value)] = known = {}
            for key, item in value.items():
                known[_copy_value(key, memo)] = _copy_value(item, memo)
        return known
    if kind is tuple and all(type(item) in ATOMS for item in value):
        return value
    return copy_module(value, memo) if isinstance(value, nn.Module) else copy.deepcopy(value, memo)


@per_class
def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether deepcopy would copy objects of this class by ``__getstate__``, a dict, and ``__setstate__`` alone."""
    return (
        kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and not any(hasattr(kind, name) for name in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))
        and not issubclass(kind, dict | list)
        and kind not in copyreg.dispatch_table
    )


def blank(kind: type[Module], *args: Any, **kwargs: Any) -> Module:
    """A new module ``kind(*args, **kwargs, device="meta")`` whose parameters wait to be written.

    Modules of the same arguments share their meta parameters, which hold nothing, until they are replaced. Making one
    through the class would run the random initialisation each time, on nothing.

    Args:
        kind: class of a layer without children.
        args: hashable arguments of the class.
        kwargs: the same, by name.

    """
    template: Any = _template  # mypy takes no class for hashable
    constants, containers = template(kind, args, tuple(kwargs.items()))
    made = kind.__new__(kind)
    state = made.__dict__
    state.update(constants)
    for name, value in containers:
        state[name] = value.copy()
    return made


@functools.lru_cache(maxsize=512)
def _template(
    kind: Any, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]
) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """The attributes of a new module: those that cannot change, and the containers of such."""
    state = kind(*args, **dict(kwargs), device="meta").__dict__
    containers = [(name, value) for name, value in state.items() if type(value) in _CONTAINERS]
    names = {name for name, _ in containers}
    return {name: value for name, value in state.items() if name not in names}, containers
