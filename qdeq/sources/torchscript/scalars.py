"""What TorchScript computes with numbers, strings, lists and dicts: by Python's operators where all is known.

Sources: ``torch/csrc/jit/runtime/register_prim_ops.cpp``. Every function here takes values out of a file: whole numbers
have 64 bits as in TorchScript, and nothing grows beyond ``MAX_ITEMS``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

__all__ = ["COMPUTED", "IN_CONTAINERS", "MESSAGES", "ON_NUMBERS", "TRUTHS", "compute"]

MAX_ITEMS = 100_000  # elements of a list, characters of a string
_INT64 = 2**63

ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "neg": operator.neg,
    "div": operator.truediv, "floordiv": operator.floordiv, "remainder": operator.mod,
    "__and__": operator.and_, "__or__": operator.or_, "__not__": operator.not_,
    "floor_divide": operator.floordiv, "true_divide": operator.truediv,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
"""Operators that stay what they are on numbers which the input decides, such as sizes."""
TRUTHS = frozenset(ON_NUMBERS[name] for name in ("__and__", "__or__", "__not__", "eq", "ne", "lt", "le", "gt", "ge"))
"""Those that give True or False."""
MESSAGES = frozenset({"format", "str", "warn"})
"""What words errors and warnings; nothing that a graph computes needs them."""
IN_CONTAINERS = frozenset(
    {"append", "extend", "insert", "pop", "clear", "reverse", "slice", "list", "copy", "len"}
    | {"__getitem__", "_set_item", "keys", "values", "items", "get", "dict"}
)
"""Operators that look at a container, not at what lies in it."""


def compute(name: str, args: list[Any]) -> Any:
    """What an operator gives.

    Args:
        name: of the operator, without ``aten::``.
        args: known values.

    Raises:
        KeyError: it is no operator on plain values.
        ArithmeticError, IndexError, TypeError, ValueError: it does not take these values.

    """
    value = COMPUTED[name](*args)
    if isinstance(value, int) and not -_INT64 <= value < _INT64:
        raise OverflowError("a whole number of more than 64 bits")
    return value


def _flat(value: Any) -> Any:
    """Only flat values are compared: nested ones that share each other would never end."""
    if isinstance(value, list | tuple) and any(isinstance(item, list | tuple | dict) for item in value):
        raise TypeError("lists of lists that are compared")
    return list(value) if isinstance(value, tuple) else value


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_ITEMS:
        raise OverflowError(f"more than {MAX_ITEMS} elements")
    return value


def _mul(a: Any, b: Any) -> Any:
    if isinstance(a, list | str | tuple) or isinstance(b, list | str | tuple):
        length, times = (len(a), b) if not isinstance(a, int | float) else (len(b), a)
        if not isinstance(times, int) or length * max(times, 0) > MAX_ITEMS:
            raise OverflowError(f"more than {MAX_ITEMS} elements")
    return a * b


def _pow(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        if b < 0:
            return float(a) ** b
        if abs(a) > 1 and b > 63:
            raise OverflowError("a whole number of more than 64 bits")
    value = a**b
    if isinstance(value, complex):
        raise ValueError("a root of a negative number")
    return value


def _round(value: float) -> float:
    return float(round(value))


def _append(items: list[Any], value: Any) -> list[Any]:
    items.append(value)
    _sized(items)
    return items


def _extend(items: list[Any], values: list[Any]) -> None:
    items.extend(_sized(list(values)))
    _sized(items)


def _slice(items: Any, start: int | None = None, stop: int | None = None, step: int = 1) -> Any:
    return items[start:stop:step]


def _put(items: Any, key: Any, value: Any) -> None:
    items[key] = value
    _sized(items)


def _contains(items: Any, value: Any) -> bool:
    return any(not isinstance(item, list | tuple | dict) and item == value for item in items)


def _compare(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda a, b: function(_flat(a), _flat(b))


COMPUTED: dict[str, Callable[..., Any]] = {
    **{name: _compare(ON_NUMBERS[name]) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "add": lambda a, b: _sized(_sized(a) + _sized(b)),
    "sub": operator.sub, "mul": _mul, "div": operator.truediv, "floordiv": operator.floordiv, "neg": operator.neg,
    "remainder": operator.mod, "fmod": math.fmod, "pow": _pow, "abs": abs, "round": _round,
    "floor": math.floor, "ceil": math.ceil, "sqrt": math.sqrt, "exp": math.exp, "log": math.log, "log2": math.log2,
    "log10": math.log10, "sin": math.sin, "cos": math.cos, "tanh": math.tanh,
    "min": min, "max": max, "sum": sum, "len": len,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor, "__not__": operator.not_,
    "__is__": operator.is_, "__isnot__": operator.is_not, "__contains__": _contains, "__getitem__": operator.getitem,
    "append": _append, "extend": _extend, "slice": _slice, "_set_item": _put, "list": list, "copy": list,
    "insert": lambda items, at, value: items.insert(at, value), "pop": lambda items, at=-1: items.pop(at),
    "clear": lambda items: items.clear(), "reverse": lambda items: items.reverse(),
    "keys": list, "values": lambda items: list(items.values()), "items": lambda items: list(items.items()),
    "get": lambda items, key, default=None: items.get(key, default), "dict": lambda items=(): dict(items),
    "endswith": str.endswith, "startswith": str.startswith,
    "lower": str.lower, "upper": str.upper,
}  # fmt: skip
