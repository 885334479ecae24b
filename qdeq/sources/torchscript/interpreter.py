"""Follows the code of an archive: what is known is computed, what only the input decides becomes a node of the graph.

Statements stand here, expressions in :mod:`qdeq.sources.torchscript.expressions`. A branch that ends in an exception is
not taken, as the model would not run if it were; a condition that is known decides; loops are unrolled.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from torch import fx

from qdeq.files.untrusted import refuse, shown
from qdeq.sources.torchscript.budget import Budget
from qdeq.sources.torchscript.building import Place
from qdeq.sources.torchscript.code import OPEN, Code, Function
from qdeq.sources.torchscript.expressions import Expressions, Frame, Undecided
from qdeq.sources.torchscript.objects import Object
from qdeq.sources.torchscript.operators import INPUT_DECIDES, Operators

__all__ = ["Interpreter"]

_COMPARING = {f"torch.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "__not__", "__is__", "__isnot__")}
_COMPARING |= {f"torch.{name}" for name in ("dim", "size", "len", "__and__", "__or__", "__contains__")}
_MAX_CALLS = 64  # inside each other; torch's own modules take some ten


class Interpreter(Expressions):
    """Runs functions of one archive.

    Attributes:
        called: the functions that ran.

    """

    def __init__(self, path: str, code: Code, operators: Operators, budget: Budget) -> None:
        """See the class; ``path`` is the archive, for errors."""
        super().__init__(path, code, operators, budget)
        self.called: set[Function] = set()
        self._depth = 0

    def run(self, function: Function, args: list[Any], kwargs: dict[str, Any], path: str) -> Any:
        """Call a function or method.

        Args:
            function: it.
            args: values, by position; the first is ``self`` for a method.
            kwargs: values by name.
            path: dotted path of the module that errors and names go by.

        Raises:
            QdeqValueError: something in it is not known, or the input decides where it goes.

        """
        frame = Frame(function, path, {})
        if self._depth >= _MAX_CALLS:
            refuse(self.where(frame, function.node), f"at most {_MAX_CALLS} calls inside each other", "more", OPEN)
        self._bind(frame, function.node, args, kwargs)
        self.called.add(function)
        self._depth += 1
        try:
            return self._block(function.node.body, frame)[1]
        finally:
            self._depth -= 1

    def _bind(self, frame: Frame, node: ast.FunctionDef, args: list[Any], kwargs: dict[str, Any]) -> None:
        names = [argument.arg for argument in node.args.args]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        for argument, default in zip(names[::-1], node.args.defaults[::-1], strict=False):
            if argument not in given:
                given[argument] = self.evaluate(default, frame)
        if len(args) > len(names) or given.keys() != set(names):
            got = f"{len(args) + len(kwargs)}"
            refuse(self.where(frame, node), f"{len(names)} arguments of {shown(node.name)}", got, OPEN)
        frame.names.update(given)

    def _block(self, body: list[ast.stmt], frame: Frame) -> tuple[bool, Any]:
        """Run statements: whether one of them returned, and what."""
        for statement in body:
            self.budget.spend()
            returned, value = self._statement(statement, frame)
            if returned:
                return True, value
        return False, None

    def _statement(self, node: ast.stmt, frame: Frame) -> tuple[bool, Any]:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._assign(node.targets[0], self.evaluate(node.value, frame), frame)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self._assign(node.target, self.evaluate(node.value, frame), frame)
        elif isinstance(node, ast.Return):
            return True, None if node.value is None else self.evaluate(node.value, frame)
        elif isinstance(node, ast.If):
            return self._if(node, frame)
        elif isinstance(node, ast.For):
            return self._for(node, frame)
        elif isinstance(node, ast.While):
            return self._while(node, frame)
        elif isinstance(node, ast.Expr):
            self.evaluate(node.value, frame)
        elif not isinstance(node, ast.Pass):
            refuse(self.where(frame, node), "a statement that torch.jit.save writes", type(node).__name__, OPEN)
        return False, None

    def _assign(self, target: ast.expr, value: Any, frame: Frame) -> None:
        if isinstance(target, ast.Name):
            frame.names[target.id] = value
        elif isinstance(target, ast.Tuple):
            values = self._unpack(value, len(target.elts), frame, target)
            for part, item in zip(target.elts, values, strict=True):
                self._assign(part, item, frame)
        elif isinstance(target, ast.Attribute):
            item = self.evaluate(target.value, frame)
            if not isinstance(item, Object) or item.frozen:
                what = "a forward that leaves the module as it is"
                refuse(self.where(frame, target), what, f"one that sets {shown(target.attr)[1:-1]}", INPUT_DECIDES)
            self.set_attribute(item, target.attr, value)
        else:
            refuse(self.where(frame, target), "a name to assign to", type(target).__name__, OPEN)

    def _unpack(self, value: Any, count: int, frame: Frame, node: ast.AST) -> list[Any]:
        if isinstance(value, fx.Node):
            return [self.operators.item(value, index, self.place(frame, node)) for index in range(count)]
        if isinstance(value, Object) and value.cls.base == "NamedTuple":
            value = list(value.attributes.values())
        if not isinstance(value, list | tuple) or len(value) != count:
            refuse(self.where(frame, node), f"{count} values", shown(value), OPEN)
        return list(value)

    def _if(self, node: ast.If, frame: Frame) -> tuple[bool, Any]:
        yes, no = self._raises(node.body, frame), self._raises(node.orelse, frame)
        if yes and not no:
            return self._block(node.orelse, frame)
        if no and not yes:
            return self._block(node.body, frame)
        if _does_nothing(node.body) and _does_nothing(node.orelse):
            return False, None
        condition = self.evaluate(node.test, frame)
        if isinstance(condition, bool | int | float):
            return self._block(node.body if condition else node.orelse, frame)
        where, text = self.where(frame, node), f"if {shown(ast.unparse(node.test))[1:-1]}, which the input decides"
        names = _compared([*node.body, *node.orelse])
        if names is None:
            refuse(where, "a condition that is known", text, INPUT_DECIDES)
        frame.names.update(dict.fromkeys(names, Undecided(where, text)))  # a guard's: what only raises is left out
        return False, None

    def _raises(self, body: list[ast.stmt], frame: Frame) -> bool:
        """Whether a block always ends in an exception."""
        for node in body:
            self.budget.spend()
            if isinstance(node, ast.Expr) and _is_raise(node.value):
                return True
            if isinstance(node, ast.If) and self._raises(node.body, frame) and self._raises(node.orelse, frame):
                return True
        return False

    def _for(self, node: ast.For, frame: Frame) -> tuple[bool, Any]:
        items = self._items(node.iter, frame)
        if items is None:
            got = f"for {shown(ast.unparse(node.iter))[1:-1]}, which the input decides"
            refuse(self.where(frame, node), "a loop of known length", got, INPUT_DECIDES)
        for item in items:
            self.budget.spend()
            self._assign(node.target, item, frame)
            returned, value = self._block(node.body, frame)
            if returned:
                return True, value
        return False, None

    def _items(self, node: ast.expr, frame: Frame) -> Sequence[Any] | None:
        """What a loop goes through; None for what the input decides."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            bounds = [self.evaluate(item, frame) for item in node.args]
            return range(*bounds) if 1 <= len(bounds) <= 3 and all(isinstance(n, int) for n in bounds) else None
        items = self.evaluate(node, frame)
        return items if isinstance(items, list | tuple) else None

    def _while(self, node: ast.While, frame: Frame) -> tuple[bool, Any]:
        while True:
            self.budget.spend()
            condition = self.evaluate(node.test, frame)
            if not isinstance(condition, bool | int):
                got = f"while {shown(ast.unparse(node.test))[1:-1]}, which the input decides"
                refuse(self.where(frame, node), "a loop of known length", got, INPUT_DECIDES)
            if not condition:
                return False, None
            returned, value = self._block(node.body, frame)
            if returned:
                return True, value

    def place(self, frame: Frame, node: ast.AST) -> Place:
        """Where the code is."""
        return Place(frame.path, self.where(frame, node))


def _is_raise(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "ops.prim.RaiseException"


def _compared(body: list[ast.stmt]) -> set[str] | None:
    """The names that a block sets, if all it does is to compare numbers: ``a and b`` is written as such; else None."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.If):
            inner = _compared([*node.body, *node.orelse])
            if inner is None or not _compares(node.test):
                return None
            names |= inner
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _compares(node.value):
            names.add(node.targets[0].id)
        elif not isinstance(node, ast.Pass):
            return None
    return names


def _compares(node: ast.expr) -> bool:
    return all(ast.unparse(part.func) in _COMPARING for part in ast.walk(node) if isinstance(part, ast.Call))


def _does_nothing(body: list[ast.stmt]) -> bool:
    """Whether a block computes nothing: it is empty, or warns."""
    return all(
        isinstance(node, ast.Pass)
        or (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value.func) == "torch.warn"
        )
        for node in body
    )
