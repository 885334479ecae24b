"""Expressions of TorchScript's code: what each is worth."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from qdeq.files.untrusted import refuse, shown
from qdeq.sources.graph.program import Packed
from qdeq.sources.torchscript.budget import Budget
from qdeq.sources.torchscript.building import Place
from qdeq.sources.torchscript.code import OPEN, Code, Function, ScriptClass
from qdeq.sources.torchscript.objects import Object, Objects, Stored
from qdeq.sources.torchscript.operators import INPUT_DECIDES, Operators
from qdeq.sources.torchscript.schemas import type_of
from qdeq.words import join

__all__ = ["Expressions", "Frame", "Undecided"]

_NAMES = {"inf": math.inf, "nan": math.nan, "infj": complex(0, math.inf)}
_CASTS = {"annotate": 1, "unchecked_cast": 1}  # name -> which argument is the value
_NUMBERS: dict[str, Callable[[Any], Any]] = {"int": int, "float": float, "bool": bool}


@dataclass(frozen=True, eq=False)
class Frame:
    """A function under way.

    Attributes:
        function: it.
        path: dotted path of the module whose method it is.
        names: its variables.

    """

    function: Function
    path: str
    names: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Undecided:
    """What a name is worth that a condition sets which only the input decides.

    Attributes:
        where: where the condition stands.
        text: it, for errors.

    """

    where: str
    text: str


@dataclass(frozen=True, eq=False)
class _Method:
    owner: Object
    function: Function


@dataclass(frozen=True)
class _Dotted:
    """A name that begins with ``torch``, ``ops``, ``__torch__`` or ``CONSTANTS``, followed so far."""

    name: str


class Expressions:
    """Evaluates expressions of one archive; calls go to :meth:`run`, which a subclass has."""

    def __init__(self, path: str, code: Code, operators: Operators, budget: Budget) -> None:
        """See the class; ``path`` is the archive, for errors."""
        self.path, self.code, self.operators, self.budget = path, code, operators, budget
        self.objects: Objects  # set by whoever makes both, for each needs the other

    def run(self, function: Function, args: list[Any], kwargs: dict[str, Any], path: str) -> Any:
        """Call a function."""
        raise NotImplementedError

    def where(self, frame: Frame, node: ast.AST) -> str:
        """What errors call a place in the code."""
        return f"{self.path}: {frame.function.file} line {getattr(node, 'lineno', 0)}"

    def evaluate(self, node: ast.expr, frame: Frame) -> Any:
        """What an expression is worth: a plain value, a tensor of the archive, an object, or a node."""
        self.budget.spend()
        evaluate = _KINDS.get(type(node))
        if evaluate is None:
            what = "an expression that torch.jit.save writes"
            refuse(self.where(frame, node), what, type(node).__name__, OPEN)
        return evaluate(self, node, frame)

    def _constant(self, node: ast.Constant, frame: Frame) -> Any:
        return node.value

    def _name(self, node: ast.Name, frame: Frame) -> Any:
        if node.id in frame.names:
            value = frame.names[node.id]
            if isinstance(value, Undecided):
                refuse(value.where, "a condition that is known", value.text, INPUT_DECIDES)
            return value
        if node.id in ("torch", "ops", "__torch__", "CONSTANTS"):
            return _Dotted(node.id)
        if node.id not in _NAMES:
            refuse(self.where(frame, node), "a name that has a value", shown(node.id), OPEN)
        return _NAMES[node.id]

    def _attribute(self, node: ast.Attribute, frame: Frame) -> Any:
        owner = self.evaluate(node.value, frame)
        if isinstance(owner, _Dotted):
            if owner.name == "CONSTANTS":
                return self.objects.constant(self.where(frame, node), node.attr)
            return _Dotted(f"{owner.name}.{node.attr}")
        return self.get_attribute(owner, node.attr, frame, node)

    def get_attribute(self, owner: Any, name: str, frame: Frame, node: ast.AST) -> Any:
        """An attribute or a method of an object."""
        if not isinstance(owner, Object):
            refuse(self.where(frame, node), "an object with attributes", shown(owner), OPEN)
        if name in owner.attributes or name in owner.raw:
            return self.objects.attribute(owner, name)
        if name in owner.cls.methods:
            return _Method(owner, owner.cls.methods[name])
        if name not in owner.cls.constants:
            refuse(self.where(frame, node), f"an attribute of {owner.cls.name}", shown(name), OPEN)
        return self.evaluate(owner.cls.constants[name], frame)

    def set_attribute(self, item: Object, name: str, value: Any) -> None:
        """Set an attribute of an object that is being made."""
        if isinstance(value, Packed) and not value.held:
            value.held = join(item.path, name)
        item.attributes[name] = value

    def _tuple(self, node: ast.Tuple, frame: Frame) -> tuple[Any, ...]:
        return tuple([self.evaluate(item, frame) for item in node.elts])

    def _list(self, node: ast.List, frame: Frame) -> list[Any]:
        return [self.evaluate(item, frame) for item in node.elts]

    def _dict(self, node: ast.Dict, frame: Frame) -> dict[Any, Any]:
        keys = [self._key(item, frame) for item in node.keys]
        return dict(zip(keys, [self.evaluate(item, frame) for item in node.values], strict=True))

    def _key(self, node: ast.expr | None, frame: Frame) -> Any:
        key = None if node is None else self.evaluate(node, frame)
        if not isinstance(key, str | bool | int | float):
            refuse(self.path, "a dict with known keys", shown(key), INPUT_DECIDES)
        return key

    def _minus(self, node: ast.UnaryOp, frame: Frame) -> Any:
        value = self.evaluate(node.operand, frame)
        if not isinstance(node.op, ast.USub) or not isinstance(value, int | float):
            refuse(self.where(frame, node), "a number behind a minus", shown(value), OPEN)
        return -value

    def _subscript(self, node: ast.Subscript, frame: Frame) -> Any:
        owner = self.evaluate(node.value, frame)
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds = [None if part is None else self.evaluate(part, frame) for part in parts]
            return self.operators.call("aten::slice", [owner, *bounds[:2], bounds[2] or 1], {}, self._at(frame, node))
        index = self.evaluate(node.slice, frame)
        if isinstance(owner, Object) and owner.cls.base == "NamedTuple":
            owner = tuple(owner.attributes.values())
        if isinstance(owner, fx.Node):
            return self.operators.item(owner, index, self._at(frame, node))
        try:
            return owner[index]
        except (LookupError, TypeError) as error:
            refuse(self.where(frame, node), "an index that is there", shown(str(error)), OPEN)

    def _at(self, frame: Frame, node: ast.AST) -> Place:
        return Place(frame.path, self.where(frame, node))

    def _call(self, node: ast.Call, frame: Frame) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id not in frame.names:
            return self._builtin(node.func.id, node, frame)
        function = self.evaluate(node.func, frame)
        args = [self.evaluate(item, frame) for item in node.args]
        kwargs = {item.arg: self.evaluate(item.value, frame) for item in node.keywords if item.arg is not None}
        if isinstance(function, _Method):
            return self.run(function.function, [function.owner, *args], kwargs, function.owner.path or frame.path)
        if not isinstance(function, _Dotted):
            refuse(self.where(frame, node), "a function", shown(function), OPEN)
        root, _, name = function.name.partition(".")
        if root == "__torch__":
            return self._call_own(function.name, args, kwargs, frame, node)
        if function.name == "torch.device":
            return self._device(args, frame, node)
        operator = f"aten::{name}" if root == "torch" else name.replace(".", "::")
        return self.operators.call(operator, args, kwargs, self._at(frame, node))

    def _call_own(self, name: str, args: list[Any], kwargs: dict[str, Any], frame: Frame, node: ast.AST) -> Any:
        found = self.code.find(name)
        if isinstance(found, Function):
            return self.run(found, args, kwargs, frame.path)
        where = self.where(frame, node)
        if not isinstance(found, ScriptClass):
            refuse(where, "a function that the code has", shown(name), OPEN)
        made = Object(found)
        if found.base == "NamedTuple":
            made.attributes.update(zip(found.fields, args, strict=False))
        elif "__init__" in found.methods:
            self.run(found.methods["__init__"], [made, *args], kwargs, frame.path)
        else:
            refuse(where, "a class that can be made", shown(name), OPEN)
        return made

    def _device(self, args: list[Any], frame: Frame, node: ast.AST) -> torch.device:
        try:
            return torch.device(*args)
        except (RuntimeError, TypeError) as error:
            refuse(self.where(frame, node), "a device of this torch", shown(str(error)), OPEN)

    def _builtin(self, name: str, node: ast.Call, frame: Frame) -> Any:
        if name == "uninitialized":
            return None
        if name in ("annotate", "unchecked_cast") and len(node.args) == 2:
            value = self.evaluate(node.args[1], frame)
            wanted = node.args[0].id if isinstance(node.args[0], ast.Name) else ""
            return self._cast(wanted, value, frame, node) if isinstance(value, Stored) and wanted in _NUMBERS else value
        values = [self.evaluate(item, frame) for item in node.args]
        if name == "getattr" and len(values) == 2 and isinstance(values[1], str):
            return self.get_attribute(values[0], values[1], frame, node)
        if name not in _NUMBERS or len(values) != 1:
            refuse(self.where(frame, node), "a function that torch.jit.save writes", shown(name), OPEN)
        return self._cast(name, values[0], frame, node)

    def _cast(self, name: str, value: Any, frame: Frame, node: ast.AST) -> Any:
        if isinstance(value, Stored):
            value = value.number(self.where(frame, node))
        if isinstance(value, bool | int | float | str):
            try:
                return _NUMBERS[name](value)
            except (ValueError, OverflowError) as error:
                refuse(self.where(frame, node), "a number", shown(str(error)), OPEN)
        if type_of(value) not in (name, "number"):
            refuse(
                self.where(frame, node),
                f"{name}() of a number that is known",
                "one that the input decides",
                INPUT_DECIDES,
            )
        return value


_KINDS: dict[type[ast.expr], Callable[[Any, Any, Frame], Any]] = {
    ast.Constant: Expressions._constant,
    ast.Name: Expressions._name,
    ast.Attribute: Expressions._attribute,
    ast.Tuple: Expressions._tuple,
    ast.List: Expressions._list,
    ast.Dict: Expressions._dict,
    ast.UnaryOp: Expressions._minus,
    ast.Subscript: Expressions._subscript,
    ast.Call: Expressions._call,
}
