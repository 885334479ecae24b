"""What the naming of a checkpoint works with: the things a key may hold, and the plan of where they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qdeq.errors import refuse
from qdeq.layers.names import bias_name
from qdeq.state_dicts.rowwise import rowwise_shape
from qdeq.words import join

__all__ = [
    "Cell",
    "Fold",
    "Packed",
    "Plan",
    "Rowwise",
    "Scaled",
    "ShapeOf",
    "Stack",
    "Target",
    "map_tensors",
    "target_shape",
]

ShapeOf = Callable[[Any], "tuple[int, ...] | None"]
"""Gives the shape of a tensor of any kind; None for what is no tensor."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Weight and bias that one key holds; ``bias`` is None where the layer has none."""

    weight: Any
    bias: Any


@dataclass(frozen=True, eq=False)
class Cell:
    """The two packed linears of one layer and direction of an RNN."""

    ih: Packed
    hh: Packed


@dataclass(frozen=True, eq=False)
class Fold:
    """A convolution or linear whose batch norm is folded in: ``weight`` or ``bias`` of the result.

    ``parts``: weight, bias or None, and the batch norm's weight, bias, running mean and running variance.
    """

    part: str
    parts: tuple[Any, ...]

    @property
    def like(self) -> Any:
        """The part that has the shape and dtype of the result."""
        return self.parts[0 if self.part == "weight" else 2]


@dataclass(frozen=True, eq=False)
class Stack:
    """Tensors that the float model keeps as one, below each other; ``sources`` are the keys they come from."""

    parts: tuple[Any, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scaled:
    """Plain integers (int8, uint8, int32) and, beside them, what they are to be multiplied by.

    ``parts``: integers, scale, and zero point and axis where the source has them, else None. All but the first may be
    numbers.
    """

    parts: tuple[Any, Any, Any, Any]


@dataclass(frozen=True, eq=False)
class Rowwise:
    """A table whose rows of bytes hold values of ``bits`` bits, then their scale and offset."""

    table: Any
    bits: int


@dataclass(frozen=True, eq=False)
class Target:
    """One tensor of the float model: its value as the source gave it, the source's key, and a remark."""

    value: Any
    source: str
    note: str = ""


@dataclass
class Plan:
    """Where everything goes.

    Attributes:
        targets: float name -> where it comes from.
        activations: module path -> (scale, zero point), as the source gave them.
        constants: dotted name -> number that the float class holds as an attribute, such as ``act.alpha``.
        dropped: source key -> why it has no place in a float model.
        doubtful: float name -> why the bytes of that weight may not be what was trained.

    """

    targets: dict[str, Target] = field(default_factory=dict)
    activations: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    doubtful: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, name: str, target: Target) -> None:
        """Put in a tensor; refuse one whose float name another key has."""
        if name in self.targets:
            got = f"{self.targets[name].source!a} and {target.source!a}"
            refuse(f"{where}: {name}", "one source", got, "The checkpoint holds two versions of one layer: remove one.")
        self.targets[name] = target

    def renamed(self, where: str, rename: Callable[[str], str]) -> Plan:
        """The same under other names; those of modules and constants change, too."""
        plan = Plan(dropped=dict(self.dropped))
        for name, target in self.targets.items():
            plan.add(where, rename(name), target)
        plan.activations = {rename(path): qparams for path, qparams in self.activations.items()}
        plan.constants = {rename(name): value for name, value in self.constants.items()}
        plan.doubtful = {rename(name): why for name, why in self.doubtful.items()}
        return plan

    def drop(self, name: str, reason: str) -> None:
        """Take a target out."""
        self.dropped[self.targets.pop(name).source] = reason

    def add_packed(self, where: str, name: str, packed: Packed, key: str) -> None:
        """Put in what one key holds: the weight ``name`` and its bias, if there is one."""
        self.add(where, name, Target(packed.weight, key))
        if packed.bias is not None:
            path, _, weight = name.rpartition(".")
            self.add(where, join(path, bias_name(weight)), Target(packed.bias, key))


def map_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """A target's value with ``change`` made to each of its tensors."""
    if isinstance(value, Fold):
        return Fold(value.part, tuple(None if part is None else change(part) for part in value.parts))
    if isinstance(value, Stack):
        return Stack(tuple(change(part) for part in value.parts), value.sources)
    if isinstance(value, Scaled):
        known = (part if part is None or isinstance(part, int | float) else change(part) for part in value.parts)
        integers, scale, zero_point, axis = known
        return Scaled((integers, scale, zero_point, axis))
    return Rowwise(change(value.table), value.bits) if isinstance(value, Rowwise) else change(value)


def target_shape(value: Any, shape_of: ShapeOf) -> tuple[int, ...] | None:
    """The shape of a target's value in the float model."""
    if isinstance(value, Fold):
        return shape_of(value.like)
    if isinstance(value, Stack):
        shapes = [shape_of(part) or () for part in value.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])
    if isinstance(value, Scaled):
        return shape_of(value.parts[0])
    if isinstance(value, Rowwise):
        return rowwise_shape(shape_of(value.table) or (), value.bits)
    return shape_of(value)
