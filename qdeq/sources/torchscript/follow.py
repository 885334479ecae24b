"""From an archive to the graph of its forward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from qdeq.files.torch_archive.script import Script
from qdeq.files.untrusted import refuse, shown
from qdeq.sources.graph.program import Program
from qdeq.sources.torchscript.budget import Budget
from qdeq.sources.torchscript.building import Building, Place
from qdeq.sources.torchscript.code import OPEN, Code, Function
from qdeq.sources.torchscript.interpreter import Interpreter
from qdeq.sources.torchscript.objects import Object, Objects
from qdeq.sources.torchscript.operators import Operators

__all__ = ["Followed", "follow"]

_PLACEHOLDERS = ("Tensor", "int", "float", "bool")


@dataclass(eq=False)
class Followed:
    """What became of an archive.

    Attributes:
        program: the graph of its forward.
        notes: choices that were made, in words.
        unused: dotted names of tensors of the archive that the forward does not use.

    """

    program: Program
    notes: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)


def follow(script: Script) -> Followed:
    """Follow the forward of the module that an archive holds; nothing of it is run.

    Raises:
        QdeqValueError: the forward does something that no float graph can say, or is not code that torch writes.

    """
    try:
        return _Following(script).run()
    except RecursionError:
        refuse(script.path, "code of few levels", "more than Python can follow", OPEN)


class _Following:
    def __init__(self, script: Script) -> None:
        budget, code = Budget(script.path), Code(script)
        self.building = Building(script.path, budget)
        self.operators = Operators(self.building, budget)
        self.interpreter = Interpreter(script.path, code, self.operators, budget)
        self.interpreter.objects = Objects(script, code, self.set_state)
        self.script, self.notes = script, list[str]()

    def set_state(self, item: Object, state: Any) -> None:
        self.interpreter.run(item.cls.methods["__setstate__"], [item, state], {}, item.path)

    def run(self) -> Followed:
        root = self.interpreter.objects.root()
        forward = root.cls.methods.get("forward")
        if forward is None:
            refuse(self.script.path, "a module with a forward", f"{root.cls.name} without one", OPEN)
        args = [root, *self._inputs(forward)]
        result = self.interpreter.run(forward, args, {}, "")
        program = self.building.program
        output = self.building.argument(result, Place("", f"{self.script.path}: {forward.file}"))
        program.graph.output(output)
        training = root.attributes.get("training", root.raw.get("training", False))
        program.training = training is True
        self._note_methods(root)
        return Followed(program, self.notes, self.interpreter.objects.unused())

    def _note_methods(self, root: Object) -> None:
        others = [
            name
            for name, function in root.cls.methods.items()
            if name != "forward" and not name.startswith("_") and function not in self.interpreter.called
        ]
        if others:
            self.notes.append(f"only forward became a graph; the script also has {', '.join(others)}")

    def _inputs(self, forward: Function) -> Iterator[Any]:
        arguments = forward.node.args
        names = arguments.args[1:]
        defaults = [None] * (len(names) - len(arguments.defaults)) + list(arguments.defaults)
        for argument, default in zip(names, defaults[-len(names) :] if names else [], strict=True):
            kind = "Tensor" if argument.annotation is None else ast.unparse(argument.annotation)
            if default is not None:
                yield self._default(argument.arg, default, forward)
            else:
                yield self._input(argument.arg, kind, forward)

    def _default(self, name: str, default: ast.expr, forward: Function) -> Any:
        try:
            value = ast.literal_eval(default)
        except ValueError:
            refuse(f"{self.script.path}: {forward.file}", f"a plain default of {name}", ast.unparse(default), OPEN)
        self.notes.append(f"forward takes no {name}: it is {value!r}, its default")
        return value

    def _input(self, name: str, kind: str, forward: Function) -> Any:
        if kind.startswith("Optional["):
            kind = kind[len("Optional[") : -1]
            self.notes.append(f"forward's {name} may not be None")
        listed = kind.startswith(("List[", "Dict[", "Tuple["))
        if kind not in _PLACEHOLDERS and not listed:
            what = "inputs that are tensors, numbers, or lists, tuples and dicts of them"
            refuse(f"{self.script.path}: {forward.file}", what, f"{name}: {shown(kind)[1:-1]}", OPEN)
        node = self.building.placeholder(name, kind)
        return self._split(node, kind, name) if kind.startswith("Tuple[") else node

    def _split(self, node: fx.Node, kind: str, name: str) -> tuple[Any, ...]:
        """The elements of a tuple: their number is known, other than that of a list."""
        place = Place("", f"input {name}")
        items = []
        for index, inner in enumerate(_inside(kind)):
            item = self.building.item(node, index, inner, place)
            items.append(self._split(item, inner, name) if inner.startswith("Tuple[") else item)
        return tuple(items)


def _inside(kind: str) -> list[str]:
    """The types in ``Tuple[...]``."""
    parsed = ast.parse(kind, mode="eval").body
    assert isinstance(parsed, ast.Subscript)  # it begins with Tuple[
    elements = parsed.slice.elts if isinstance(parsed.slice, ast.Tuple) else [parsed.slice]
    return [ast.unparse(element) for element in elements]
