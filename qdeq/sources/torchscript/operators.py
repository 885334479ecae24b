"""Calls of operators: computed where all is known, else a node of the graph."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.untrusted import refuse, shown
from qdeq.sources.torchscript import scalars
from qdeq.sources.torchscript.allowed import ALLOWED
from qdeq.sources.torchscript.budget import Budget
from qdeq.sources.torchscript.building import Building, Place
from qdeq.sources.torchscript.code import OPEN
from qdeq.sources.torchscript.objects import Stored
from qdeq.sources.torchscript.packing import pack
from qdeq.sources.torchscript.schemas import match, type_of

__all__ = ["INPUT_DECIDES", "Operators"]

INPUT_DECIDES = (
    "Only its own code can run it: make the model again without it, by torch.fx, or read the weights. " + OPEN
)

_NUMBERS = ("int", "float", "bool", "number")
_POSITIVE = "positive"  # key of a node's meta: it gives no negative number
# c10/core/ScalarType.h, MemoryFormat.h, Layout.h: how the code writes them.
_DTYPES = {0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64"}
_DTYPES |= {9: "complex64", 10: "complex128", 11: "bool", 12: "qint8", 13: "quint8", 14: "qint32", 15: "bfloat16"}
_DTYPES |= {16: "quint4x2", 17: "quint2x4"}
_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
_ENUMS: dict[str, dict[int, Any]] = {
    "ScalarType": {code: getattr(torch, name) for code, name in _DTYPES.items() if hasattr(torch, name)},
    "Layout": {0: torch.strided},
    "MemoryFormat": dict(enumerate(_FORMATS)),
}
# Operators that give what they are given, as far as a graph is concerned.
_SAME = {"prim::NumToTensor", "prim::data", "prim::unchecked_unwrap_optional", "aten::ScalarImplicit"}
_SAME |= {"aten::IntImplicit", "aten::FloatImplicit", "aten::_unwrap_optional"}
# What a tensor says of itself, by prim's name and Python's -> its type.
_PROPERTIES = {"dtype": "int", "layout": "int", "device": "Device", "is_quantized": "bool", "requires_grad": "bool"}
_QPARAMS = ("scale", "zero_point")
# They take sizes in a list; where torch.fx traces a graph anew, as unpickling does, it sees what lies in no list.
_FACTORIES = {"zeros", "ones", "empty", "full"}


class Operators:
    """Calls operators for the code of one archive."""

    def __init__(self, building: Building, budget: Budget) -> None:
        """See the class."""
        self._building, self._budget = building, budget

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any], at: Place) -> Any:
        """What an operator gives.

        Args:
            name: such as ``aten::relu`` or ``quantized::linear``.
            args: values of the code.
            kwargs: likewise, by name.
            at: where the code is.

        Raises:
            QdeqValueError: it is not one that models compute with, or does not take these arguments.

        """
        packed = pack(name, args, at.where, lambda value: self._tensor(value, at))
        if packed is not None:
            return packed
        if name in _SAME:
            return args[0]
        namespace, _, own = name.partition("::")
        if namespace == "prim":
            return self._prim(own, args, at)
        if namespace == "aten":
            return self._aten(own, args, kwargs, at)
        if namespace not in ("quantized", "sparse"):
            refuse(at.where, "operators of torch itself", shown(name), OPEN)
        return self._emit(name, args, kwargs, at)

    def _tensor(self, value: object, at: Place) -> StoredTensor | None:
        if value is not None and not isinstance(value, Stored):
            refuse(at.where, "a weight that lies in the file", shown(value), OPEN)
        if value is None:
            return None
        value.used = True
        return value.tensor

    def _prim(self, own: str, args: list[Any], at: Place) -> Any:
        if own == "RaiseException":
            refuse(at.where, "code that ends", "an exception that it raises", OPEN)
        if own in _PROPERTIES and isinstance(args[0], fx.Node):
            kind = _PROPERTIES[own]
            return self._building.call(getattr, (args[0], own), {}, kind, at, self._building.name_for(own))
        if own == "dtype" and isinstance(args[0], Stored):
            return next((code for code, dtype in _DTYPES.items() if dtype == args[0].tensor.dtype), None)
        extreme = own in ("min", "max")
        if extreme and not any(self._is_computed(value) for value in args):
            return self._compute(own, args, at)
        if not extreme or len(args) != 2 or not all(type_of(value) in _NUMBERS for value in args):
            refuse(at.where, "operators that models compute with", f"prim::{shown(own)[1:-1]}", OPEN)
        return self._number(torch.sym_min if own == "min" else torch.sym_max, tuple(args), at)

    def _aten(self, own: str, args: list[Any], kwargs: dict[str, Any], at: Place) -> Any:
        if own in ("__is__", "__isnot__"):  # what is computed is never None
            return (args[0] is args[1]) is (own == "__is__")
        if own in scalars.MESSAGES:
            return ""
        args = self._counts(own, args)
        computed = any(self._is_computed(value) for value in [*args, *kwargs.values()])
        inside = own in scalars.IN_CONTAINERS and isinstance(args[0], list | tuple | dict)
        if own in scalars.COMPUTED and (inside or not computed):
            return self._compute(own, [*args, *kwargs.values()], at)
        # A trace writes into the tensor that a size is to it.
        on_numbers = own if own.endswith("__") else own.removesuffix("_")
        if on_numbers in scalars.ON_NUMBERS and all(type_of(value) in _NUMBERS for value in args):
            return self._on_numbers(on_numbers, args, kwargs, at)
        if any(type_of(value).startswith("List[") for value in args[:2]):
            found = self._on_list(own, args, at)
            if found is not None:
                return found
        in_place = own.endswith("_") and not own.endswith("__")
        if own not in ALLOWED and not (in_place and own[:-1] in ALLOWED):
            refuse(at.where, "operators that models compute with", f"aten::{shown(own)[1:-1]}", OPEN)
        like = _source_of_sizes(args[0]) if own in _FACTORIES and args and isinstance(args[0], list) else None
        if like is not None:
            own, args = f"new_{own}", [like, *args]
        return self._emit(f"aten::{own}", args, kwargs, at)

    def _is_computed(self, value: Any) -> bool:
        """Whether a value holds something that only running the model gives, or a tensor."""
        waiting = [value]
        while waiting:
            self._budget.spend()
            item = waiting.pop()
            if isinstance(item, fx.Node | Stored):
                return True
            if isinstance(item, list | tuple | dict):
                waiting += item.values() if isinstance(item, dict) else item
        return False

    def _counts(self, own: str, args: list[Any]) -> list[Any]:
        """The arguments with numbers for constants that a trace multiplies sizes by: tensors without dimensions."""
        if own.removesuffix("_") not in scalars.ON_NUMBERS or not any(_is_number(value) for value in args):
            return args
        return [value.number("") if _is_count(value) else value for value in args]

    def _compute(self, own: str, args: list[Any], at: Place) -> Any:
        try:
            return scalars.compute(own, args)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            refuse(at.where, f"arguments of {own}", shown(str(error)), OPEN)

    def _on_numbers(self, own: str, args: list[Any], kwargs: dict[str, Any], at: Place) -> fx.Node:
        rounding = kwargs.get("rounding_mode")
        if rounding is not None:
            # Both roundings are the same for sizes, and a graph has no other way to round towards zero.
            if not all(_is_positive(value) for value in args):
                refuse(at.where, "a division of sizes", f"one that rounds by {shown(rounding)}", INPUT_DECIDES)
            own = "floordiv"
        return self._number(scalars.ON_NUMBERS[own], tuple(args), at)

    def _number(self, function: Callable[..., Any], args: tuple[Any, ...], at: Place) -> fx.Node:
        kinds = {type_of(value) for value in args}
        kind = "int" if kinds == {"int"} and function is not operator.truediv else "float"
        kind = "bool" if function in scalars.TRUTHS else kind
        name = self._building.name_for(function.__name__)
        node = self._building.call(function, args, {}, kind, at, name)
        if function in (operator.mul, operator.add, operator.floordiv) and all(map(_is_positive, args)):
            node.meta[_POSITIVE] = True
        return node

    def _on_list(self, own: str, args: list[Any], at: Place) -> Any:
        """An operation on a list that the input decides, such as a shape; None for one that is left as it is."""
        first = args[0]
        if own == "list":
            return first
        if own == "add":
            kind = next(type_of(value) for value in args if isinstance(value, fx.Node))
            name = self._building.name_for("add")
            return self._building.call(operator.add, self._building.argument(tuple(args), at), {}, kind, at, name)
        if own == "len" and first.target is torch.ops.aten.size:
            return self._emit("aten::dim", [first.args[0]], {}, at)
        if own == "slice":
            return self._building.item(first, slice(*args[1:]), type_of(first), at)
        return self.item(first, args[1], at) if own == "__getitem__" else None

    def item(self, node: fx.Node, index: Any, at: Place) -> fx.Node:
        """An element, by its known index, of a list, tuple or dict that the input decides."""
        if not isinstance(index, int | str):
            refuse(at.where, "a known index", shown(index), INPUT_DECIDES)
        kind = type_of(node)
        inner = kind[len("List[") : -1] if kind.startswith("List[") else ""
        if kind.startswith("Dict["):
            inner = kind[len("Dict[") : -1].partition(", ")[2]
        found = self._building.item(node, index, inner or "Tensor", at)
        if node.target is torch.ops.aten.size:
            found.meta[_POSITIVE] = True
        return found

    def _emit(self, name: str, args: list[Any], kwargs: dict[str, Any], at: Place) -> Any:
        namespace, _, own = name.partition("::")
        found = match(name, args, kwargs)
        if found is None and namespace == "aten":
            kinds = ", ".join(type_of(value) or type(value).__name__ for value in [*args, *kwargs.values()])
            refuse(at.where, f"arguments that this torch's {shown(name)[1:-1]} takes", shown(kinds), OPEN)
        hint = self._building.name_for(own)
        given = found.given if found is not None else tuple(("", "") for _ in [*args, *kwargs])
        values = [
            self._argument(name, value, role, kind, hint, at)
            for value, (role, kind) in zip([*args, *kwargs.values()], given, strict=True)
        ]
        by_name = dict(zip(kwargs, values[len(args) :], strict=True))
        returns = found.returns if found is not None else ("Tensor",)
        target = getattr(getattr(torch.ops, namespace), own, None)
        if target is None:
            refuse(at.where, "an operator of this torch", shown(name), OPEN)
        kind = returns[0] if len(returns) == 1 else "Tuple"
        node = self._building.call(target, values[: len(args)], by_name, kind, at, hint)
        if len(returns) > 1:
            return tuple(self._building.item(node, index, kind, at) for index, kind in enumerate(returns))
        if own in ("size", "dim", "len") and kind == "int":
            node.meta[_POSITIVE] = True
        return node if returns else None

    def _argument(self, name: str, value: Any, role: str, kind: str, hint: str, at: Place) -> Any:
        kind = kind.removeprefix("Optional[").removesuffix("]") if kind.startswith("Optional[") else kind
        if isinstance(value, int) and kind in _ENUMS:
            known = _ENUMS[kind].get(value)
            if known is None:
                refuse(at.where, f"a known {kind}", shown(value), OPEN)
            return known
        if isinstance(value, Stored):
            rounds = name.startswith(("quantized::", "aten::quantize_per_tensor")) and role.endswith(_QPARAMS)
            if (rounds and value.tensor.numel == 1) or kind in _NUMBERS:
                return value.number(at.where)
        return self._building.argument(value, at, hint, role)


def _source_of_sizes(sizes: list[Any]) -> fx.Node | None:
    """The tensor that a list of sizes was read from; None for one of known numbers."""
    node = next((size for size in sizes if isinstance(size, fx.Node)), None)
    while node is not None and type_of(node) != "Tensor":
        node = next(iter(node.all_input_nodes), None)
    return node


def _is_number(value: object) -> bool:
    return isinstance(value, fx.Node) and type_of(value) in _NUMBERS


def _is_count(value: object) -> bool:
    """Whether a value is a whole number that a trace keeps as a tensor."""
    if not isinstance(value, Stored) or not value.name.startswith("constants."):
        return False
    return value.tensor.shape == () and value.tensor.dtype in ("int64", "int32")


def _is_positive(value: object) -> bool:
    return bool(value.meta.get(_POSITIVE)) if isinstance(value, fx.Node) else isinstance(value, int) and value > 0
