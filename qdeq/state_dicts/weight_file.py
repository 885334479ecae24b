"""What every opened file is: a mapping from names to weights that are read when they are asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Plan
from qdeq.state_dicts.values import shape_of
from qdeq.weights.weight import QuantizedWeight

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Entry", "WeightFile"]


@dataclass(frozen=True)
class Entry:
    """One weight of a file, known without reading it.

    Attributes:
        name: the float model's name.
        shape: its shape.
        dtype: torch's name of the stored values: ``qint8``, ``float32``, ...
        qscheme: torch's name of the scheme; None for a plain tensor.
        axis: channel axis; None for a plain tensor or a per tensor scheme.
        scale_min: smallest scale; None for a plain tensor.
        scale_max: largest scale; None for a plain tensor.
        bytes: size of the values in the file.
        source: the key in the file.
        note: a choice that was made, in words; empty where there was none.

    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    qscheme: str | None
    axis: int | None
    scale_min: float | None
    scale_max: float | None
    bytes: int
    source: str
    note: str = ""


class WeightFile(Mapping[str, QuantizedWeight | Tensor]):
    """Names to :class:`~qdeq.QuantizedWeight` or plain tensors. A context: leaving it closes the file.

    Tensors alias the mapped file and keep the map alive, also after :meth:`close`; writing to one changes neither the
    file nor another mapping of it.

    **The protocol.** A subclass reads one format, or part of another file. It gives the names to :meth:`__init__`,
    fills the attributes below, and implements ``__getitem__`` (reads one weight), :meth:`entry` (describes one from the
    file's directory, without its values), :meth:`release` (memory of what was read may go: called now and then by
    whoever reads all weights in turn, so that a file may be larger than memory), :attr:`files` and :meth:`close`.
    One that keeps keys of its own beside the float names overrides :meth:`plan_for`, one whose names are not those of
    torch's modules :meth:`by_parameter`.

    Attributes:
        path: what was opened.
        activation_qparams: module path -> (scale, zero point) of its quantized output.
        constants: dotted name -> number that the float class holds as an attribute, such as ``act.alpha`` of an ELU.
        doubtful: name -> why the bytes of that weight may not be what was trained.
        dropped: keys that have no place among the weights, with the reason.
        integers: name -> what it is, of weights that are plain integers: their floats are not known.
        unread: keys that may hold weights, but are of no kind that is known -> what they are; they are dropped, too.

    """

    kind = "file"
    """What the report calls the class of a source."""

    def __init__(self, path: str, names: Mapping[str, object]) -> None:
        self.path = path
        self._names = names
        self.activation_qparams: dict[str, tuple[float, int]] = {}
        self.constants: dict[str, float] = {}
        self.doubtful: dict[str, str] = {}
        self.dropped: dict[str, str] = {}
        self.integers: dict[str, str] = {}
        self.unread: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __repr__(self) -> str:
        return f"<qdeq.{type(self).__name__} {self.path!r}: {len(self)} weights>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files that this reads."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files; weights that were read stay valid."""

    @abstractmethod
    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""

    @abstractmethod
    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""

    def plan_for(self, like: nn.Module | None) -> Plan:
        """Everything in the file by its float name; tensors are mapped, not copied.

        Args:
            like: the float model, where it is known; it tells what keys do not.

        """
        plan = plan_names(self.path, self.by_parameter(), shape_of, like)
        plan.activations |= self.activation_qparams
        plan.constants |= self.constants
        plan.dropped |= self.dropped
        plan.doubtful |= self.doubtful
        return plan

    def by_parameter(self) -> dict[str, QuantizedWeight | Tensor]:
        """Every weight by the name that torch's modules would give it; tensors are mapped, not copied."""
        return dict(self)

    def describe(self) -> list[Entry]:
        """Describe every weight, in the file's order, without reading values."""
        return [self.entry(name) for name in self]

    @property
    def unchecked(self) -> list[str]:
        """What could not be checked so far, in words."""
        return []

    @property
    def warnings(self) -> list[str]:
        """What could not be checked so far or not be read, and weights that may be wrong, in words."""
        integers = {name: f"{text}: left as integers" for name, text in self.integers.items()}
        known = {**self.unread, **self.doubtful, **integers}
        return [*self.unchecked, *(f"{name}: {text}" for name, text in known.items())]

    @property
    def report(self) -> Report:
        """The account of the file: every name's source, what was dropped and why; warnings are the notes of ``""``."""
        report = Report(activation_qparams=dict(self.activation_qparams))
        for e in self.describe():
            scales = (e.scale_min, e.scale_max)
            report.entries.append(
                ReportEntry(e.name, e.source, self.kind, "Tensor", e.shape, e.dtype, e.qscheme, *scales, note=e.note)
            )
        report.dropped.extend(DroppedSource(source, reason) for source, reason in self.dropped.items())
        for text in self.warnings:
            report.note("", text)
        return report
