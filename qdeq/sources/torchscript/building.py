"""The graph under way: nodes with what the rest of the way has to know of them, and the tensors that they use."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from qdeq.files.untrusted import refuse
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.torchscript.budget import Budget
from qdeq.sources.torchscript.code import OPEN
from qdeq.sources.torchscript.objects import Object, Stored
from qdeq.sources.torchscript.schemas import TYPE
from qdeq.words import join

__all__ = ["Building", "Place"]


@dataclass(frozen=True)
class Place:
    """Where the code is: dotted path of the module whose method runs, and file and line for errors."""

    path: str
    where: str


class Building:
    """Collects a :class:`Program`.

    Attributes:
        program: so far.

    """

    def __init__(self, path: str, budget: Budget) -> None:
        """Begin; ``path`` is the archive, for errors."""
        self.program = Program(fx.Graph())
        self._path, self._budget = path, budget
        self._fetched: dict[tuple[Stored | Packed, str], fx.Node] = {}
        self._counts: dict[str, Iterator[int]] = {}

    def name_for(self, operator: str) -> str:
        """A name for the next node that calls ``operator``: torch.fx's way, known before the node is there."""
        name = operator.removeprefix("quantized_")  # it will be a float one's
        count = next(self._counts.setdefault(name, itertools.count()))
        return f"{name}_{count}" if count else name

    def placeholder(self, name: str, kind: str) -> fx.Node:
        """An input of the model."""
        node = self.program.graph.placeholder(name)
        return self._mark(node, kind, Place("", f"input {name}"))

    def call(self, target: Callable[..., Any], args: Any, kwargs: Any, kind: str, at: Place, name: str) -> fx.Node:
        """A node that calls a function.

        Args:
            target: the function.
            args: nodes and plain values, by position.
            kwargs: likewise, by name.
            kind: type of the result.
            at: where the code is.
            name: for the node.

        """
        self._budget.add_node(at.where)
        node = self.program.graph.create_node("call_function", target, tuple(args), dict(kwargs), name=name)
        return self._mark(node, kind, at)

    def item(self, node: fx.Node, index: int | str | slice, kind: str, at: Place) -> fx.Node:
        """An element of what a node gives."""
        return self.call(operator.getitem, (node, index), {}, kind, at, self.name_for("getitem"))

    def argument(self, value: Any, at: Place, hint: str = "", role: str = "") -> Any:
        """A value of the code as an argument of a node: tensors of the archive become attributes of the program.

        Args:
            value: of the code.
            at: where the code is.
            hint: name of the node that will use it.
            role: which of its arguments it will be.

        """
        self._budget.spend()
        if isinstance(value, Stored):
            return self._fetch(value, at, hint, role)
        if isinstance(value, Packed):
            return self._fetch_packed(value, at)
        if isinstance(value, Object):
            if value.cls.base != "NamedTuple":
                refuse(at.where, "tensors, numbers and lists of them", f"an object of {value.cls.name}", OPEN)
            value = tuple(value.attributes.values())
        if isinstance(value, list | tuple):
            items = [self.argument(item, at, hint, role) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: self.argument(item, at, hint, role) for key, item in value.items()}
        return value

    def _fetch(self, stored: Stored, at: Place, hint: str, role: str) -> fx.Node:
        # Freezing makes constants of parameters, takes name and flag away, and keeps equal ones as one, even a weight
        # and another layer's variance: what an operator calls its weight or bias is a parameter of its own.
        was_parameter = role in ("weight", "bias") and stored.name.startswith("constants.")
        name = join(join(at.path, hint), role) if was_parameter else stored.name
        if (stored, name) in self._fetched:
            return self._fetched[stored, name]
        stored.used = True
        value: Any = stored.tensor.read(f"{self._path}: {stored.name}")
        is_parameter, requires_grad = stored.is_parameter or was_parameter, stored.requires_grad or was_parameter
        if is_parameter and isinstance(value, Tensor):
            value = nn.Parameter(value, requires_grad=requires_grad and value.is_floating_point())
        return self._get_attr(stored, name, value, "Tensor", at)

    def _fetch_packed(self, packed: Packed, at: Place) -> fx.Node:
        name = packed.held or "packed_weight"
        if (packed, name) in self._fetched:
            return self._fetched[packed, name]
        return self._get_attr(packed, name, packed, "packed", at)

    def _get_attr(self, source: Stored | Packed, name: str, value: Any, kind: str, at: Place) -> fx.Node:
        taken = self.program.attributes
        unique, number = name, 1
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken[unique] = value
        self._budget.add_node(at.where)
        node = self.program.graph.create_node("get_attr", unique)
        self._fetched[source, name] = self._mark(node, kind, at)
        return node

    def _mark(self, node: fx.Node, kind: str, at: Place) -> fx.Node:
        node.meta.update({TYPE: kind, "path": at.path, "where": at.where})
        return node
