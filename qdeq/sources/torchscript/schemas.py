"""Which overload of an operator a call means, by the types of its arguments: TorchScript's code does not say."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from qdeq.sources.torchscript.objects import Stored

__all__ = ["TYPE", "Match", "is_tensor", "match", "type_of"]

TYPE = "type"
"""Key of a node's ``meta``: the type that TorchScript gives it, as text, such as ``Tensor`` or ``List[int]``."""

_NUMBERS = {"int": ("int",), "float": ("float", "int"), "bool": ("bool",), "number": ("int", "float", "bool", "number")}
_ENUMS = ("ScalarType", "Layout", "MemoryFormat")


@dataclass(frozen=True)
class Match:
    """An overload and the arguments that it was given.

    Attributes:
        given: argument name -> its type, of the positional arguments in turn and of those given by name.
        returns: types of what it returns.

    """

    given: tuple[tuple[str, str], ...]
    returns: tuple[str, ...]


@dataclass(frozen=True)
class _Overload:
    arguments: tuple[tuple[str, str, bool, bool], ...]  # name, type, only by name, has a default
    returns: tuple[str, ...]


@functools.cache
def _overloads(name: str) -> tuple[_Overload, ...]:
    try:
        schemas = torch._C._jit_get_schemas_for_operator(name)
    except RuntimeError:
        return ()
    return tuple(
        _Overload(
            tuple((a.name, str(a.real_type.annotation_str), a.kwarg_only, a.has_default_value()) for a in s.arguments),
            tuple(r.type.annotation_str for r in s.returns),
        )
        for s in schemas
    )


def type_of(value: object) -> str:
    """The type of a value as TorchScript words it; empty where it is none of a kind that overloads differ in."""
    if isinstance(value, fx.Node):
        return str(value.meta.get(TYPE, "Tensor"))
    if isinstance(value, Stored):
        return "Tensor"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else ""


def is_tensor(value: object) -> bool:
    """Whether a value is a tensor, of the archive or computed."""
    return type_of(value) == "Tensor"


def match(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Match | None:
    """The first overload that takes these arguments; None where this torch has none.

    Args:
        name: such as ``aten::add``.
        args: positional arguments.
        kwargs: arguments by name.

    """
    for overload in _overloads(name):
        given = _bind(overload, args, kwargs)
        if given is not None and all(map(_fits, [*args, *kwargs.values()], [kind for _, kind in given])):
            return Match(given, overload.returns)
    return None


def _bind(overload: _Overload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[str, str], ...] | None:
    by_name = {name: kind for name, kind, _, _ in overload.arguments}
    positional = [(name, kind) for name, kind, only_by_name, _ in overload.arguments if not only_by_name]
    if len(args) > len(positional) or not by_name.keys() >= kwargs.keys():
        return None
    given = [*positional[: len(args)], *((name, by_name[name]) for name in kwargs)]
    names = {name for name, _ in given}
    if len(names) != len(given) or any(n not in names and not has for n, _, _, has in overload.arguments):
        return None
    return tuple(given)


def _fits(value: object, kind: str) -> bool:
    if kind.startswith("Optional["):
        return value is None or _fits(value, kind[len("Optional[") : -1])
    if value is None:
        return False
    own = type_of(value)
    if kind == "Tensor":
        return own == "Tensor"
    if kind in _NUMBERS:
        return own in _NUMBERS[kind]
    if kind in _ENUMS:
        return own == "int"
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        if isinstance(value, list | tuple):
            return all(_fits(item, inner) for item in value)
        return own == kind or (own.startswith("List[") and len(inner) == 1)
    if kind in ("str", "Device"):
        return own in ("str", "Device") or isinstance(value, torch.device)
    return own != "Tensor"
