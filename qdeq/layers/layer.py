"""What a quantized layer is, in the words of ``torch.nn``, whoever held it: a source describes it, it is made."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.grids.grid import Output
from qdeq.report import DroppedSource
from qdeq.words import join

__all__ = ["Activation", "Later", "Layer", "Norm", "Part", "Role", "Source", "unreadable"]


class Role(enum.Enum):
    """What a layer does to the quantization of values."""

    LAYER = "takes and gives quantized values"
    STUB = "marks where values would be quantized, and does nothing"
    QUANTIZE = "quantizes the model's input"
    DEQUANTIZE = "gives float values"
    DYNAMIC = "quantizes its input anew at every call and gives float values"


@dataclass(frozen=True, eq=False)
class Later:
    """A value that costs something to read: it is read when the layer is made, not when it is described."""

    read: Callable[[], Any]


@dataclass(frozen=True, eq=False)
class Source:
    """Something that a float parameter is made from.

    Attributes:
        name: dotted name, as reports write it.
        value: quantized tensor, packed weight, :class:`qdeq.QuantizedWeight` or float tensor; or that :class:`Later`.
        held: dotted name under which the source model holds it, for the account; ``name`` where it is empty.

    """

    name: str
    value: Any
    held: str = ""


@dataclass(frozen=True, eq=False)
class Part:
    """A parameter or buffer of the float module, and what it is made from.

    Attributes:
        name: its dotted name in the float module.
        sources: of equal numbers of rows, one below the other.
        source_class: class that held the sources, where it is not the layer's own.

    """

    name: str
    sources: tuple[Source, ...]
    source_class: str = ""


@dataclass(frozen=True)
class Activation:
    """The activation that a quantized layer owns.

    Attributes:
        kind: its ``nn`` class.
        holder: subclass of the layer's class that applies it itself, with the same parameter names; used where no
            place for the activation can be proven.
        places: how many ``nn.Identity`` fusing may have left behind the layer, at most.
        args: arguments of ``kind`` by name, which ``holder`` has as attributes.

    """

    kind: type[nn.Module]
    holder: type[nn.Module]
    places: int = 1
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Norm:
    """The batch norm that a layer applies to its output, as a child of its own.

    Attributes:
        child: name of the child in the float module.
        plain: class of the float module without it, for where the norm has a place of its own.

    """

    child: str
    plain: type[nn.Module]


@dataclass(eq=False)
class Layer:
    """A quantized layer.

    Attributes:
        path: its dotted path in the source.
        source_class: its class there, as a user would import it.
        kind: class of the float module, without the activation.
        args: its arguments by name.
        parts: its parameters and buffers, each once.
        norm: the batch norm behind it that stays one; None for none.
        activation: what it does after that; None for nothing.
        output: how its output is rounded; None for a float one.
        role: what it does to the quantization of values.
        dropped: sources that have no place in the float module, with the reason.
        notes: choices that were made, in words.
        read: dotted names of what the source holds and what was read without becoming a part.
        holds: dotted names of all that the source holds here; what is neither read nor dropped is an error.
        attributes: set on the float module once it is made.
        made: the float module itself, where whoever described it has made it.

    """

    path: str
    source_class: str
    kind: Callable[..., nn.Module]
    args: dict[str, Any] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    norm: Norm | None = None
    activation: Activation | None = None
    output: Output | None = None
    role: Role = Role.LAYER
    dropped: list[DroppedSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    made: nn.Module | None = None

    def add(self, name: str, *sources: Source, source_class: str = "") -> None:
        """Add the part ``name``."""
        self.parts.append(Part(name, sources, source_class))

    def add_tensor(self, name: str, value: Tensor) -> None:
        """Add a part of the same name in the source."""
        self.add(name, Source(join(self.path, name), value))

    def drop(self, name: str, reason: str, value: float | int | None = None) -> None:
        """Say why what the source holds as ``name`` has no place in the float module."""
        self.dropped.append(DroppedSource(join(self.path, name), reason, value))

    def accounted(self) -> set[str]:
        """Dotted names of all that is read or dropped."""
        sources = {source.held or source.name for part in self.parts for source in part.sources}
        return sources.union(self.read, (item.source for item in self.dropped))


def unreadable(path: str, source_class: str, error: Exception) -> QdeqError:
    """The error for a layer whose description or reading raised something unforeseen; ``error`` names its path."""
    if isinstance(error, QdeqError):
        return error if str(error).startswith(path) else type(error)(f"{path}: {error}")
    what = f"a {source_class} that can be read"
    remedy = "It may be half converted, or torch cannot unpack it on this engine: convert it again."
    failure = QdeqValueError(expected(path or "model", what, f"{type(error).__name__}: {error}", remedy))
    failure.__cause__ = error
    return failure
