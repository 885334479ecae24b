"""What went where: every source tensor and every target parameter of a conversion, accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qdeq.words import clip, percent_digits, shape_text, strict_json

__all__ = ["DroppedSource", "Report", "ReportEntry", "Unconverted", "Uncovered"]

TEXT_COLUMNS = 100


@dataclass(frozen=True)
class ReportEntry:
    """One target parameter and where it came from.

    Attributes:
        target: name of the parameter in the float model, as in its ``state_dict()``.
        source: dotted module path in the source and what was read there, such as ``features.0.weight``.
        source_class: class of the module that held the source.
        target_class: class of the module that holds the parameter.
        shape: shape of the parameter.
        dtype: torch's name of the source values: ``qint8``, ``float32``, ...
        qscheme: torch's name of the scheme, such as ``per_channel_affine``; None where the source is not quantized.
        scale_min: smallest scale; None where the source is not quantized.
        scale_max: largest scale; None where the source is not quantized.
        zero_point_min: smallest zero point; None where the source is not quantized.
        zero_point_max: largest zero point; None where the source is not quantized.
        saturated_share: share, 0 to 1, of the integers at the two ends of the range that the source uses (its own
            minimum and maximum of the dtype); None where it was not counted.
        note: a choice that was made, in words; empty where there was none.

    """

    target: str
    source: str
    source_class: str
    target_class: str
    shape: tuple[int, ...]
    dtype: str
    qscheme: str | None = None
    scale_min: float | None = None
    scale_max: float | None = None
    zero_point_min: float | None = None
    zero_point_max: float | None = None
    saturated_share: float | None = None
    note: str = ""


@dataclass(frozen=True)
class DroppedSource:
    """A source tensor or number that has no place in the float model, and why."""

    source: str
    reason: str
    value: float | int | None = None


@dataclass(frozen=True)
class Unconverted:
    """A quantized module that was left as it is (``strict=False``)."""

    path: str
    module_class: str
    reason: str


@dataclass(frozen=True)
class Uncovered:
    """A quantized operation whose rounding is not imitated, with ``activations="exact"`` not to the last bit."""

    path: str
    operation: str
    reason: str


@dataclass
class Report:
    """The account of one conversion.

    Attributes:
        entries: one per target parameter or buffer, in the order of the target.
        dropped: sources without a target, such as the scale of a layer's output, each with the reason.
        unconverted: modules left quantized; empty unless ``strict=False``.
        replaced: dotted path -> ``(source class, target class)`` of every module that was rebuilt.
        notes: dotted path -> choices made there, in words.
        activation_qparams: dotted path -> ``(scale, zero_point)`` of that module's quantized output.
        uncovered: operations whose quantized output the result does not imitate; empty for ``activations="drop"``.
        activation_dtypes: dotted path -> torch's name of the dtype of that module's output, where the module says
            it; all others give quint8.

    """

    entries: list[ReportEntry] = field(default_factory=list)
    dropped: list[DroppedSource] = field(default_factory=list)
    unconverted: list[Unconverted] = field(default_factory=list)
    replaced: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    activation_qparams: dict[str, tuple[float, int]] = field(default_factory=dict)
    uncovered: list[Uncovered] = field(default_factory=list)
    activation_dtypes: dict[str, str] = field(default_factory=dict)

    def move(self, before: str, after: str, target_class: str = "") -> None:
        """Parameters under the dotted name ``before`` are now under ``after``, perhaps in a module of another class."""
        for index, entry in enumerate(self.entries):
            if entry.target == before or entry.target.startswith(f"{before}."):
                target = after + entry.target[len(before) :]
                self.entries[index] = replace(entry, target=target, target_class=target_class or entry.target_class)

    def note(self, path: str, text: str) -> None:
        """Record a choice that was made at the module ``path``."""
        self.notes.setdefault(path, []).append(text)

    def leave_uncovered(self, path: str, operation: str, reason: str) -> None:
        """Name an operation at ``path`` whose quantized output is not imitated; the same one is named once."""
        item = Uncovered(path, operation, reason)
        if item not in self.uncovered:
            self.uncovered.append(item)

    def accounted_sources(self) -> set[str]:
        """Names of all sources that are used or named as dropped."""
        return {entry.source for entry in self.entries} | {item.source for item in self.dropped}

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, strings and numbers."""
        return asdict(self)

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as strict JSON; infinities and NaN become strings."""
        return strict_json(self.to_dict(), indent)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        quantized = sum(entry.qscheme is not None for entry in self.entries)
        yield (
            f"{len(self.replaced)} modules rebuilt, {len(self.unconverted)} left quantized; "
            f"{len(self.entries)} tensors written, {quantized} of them dequantized; "
            f"{len(self.dropped)} sources dropped"
        )
        if self.entries:
            yield from _table(_HEADER, [_row(entry) for entry in self.entries])
        for title, lines in (
            ("dropped", _grouped(self.dropped)),
            ("unconverted", [f"{item.path} ({item.module_class}): {item.reason}" for item in self.unconverted]),
            ("not imitated", [f"{i.path or '(model)'}: {i.operation}: {i.reason}" for i in self.uncovered]),
            ("notes", [f"{path or '(model)'}: {text}" for path, texts in self.notes.items() for text in texts]),
        ):
            if lines:
                yield f"{title}:"
                yield from (clip("  " + line, TEXT_COLUMNS) for line in lines)


def _grouped(dropped: list[DroppedSource]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for item in dropped:
        by_reason.setdefault(item.reason, []).append(item.source)
    return [f"{len(sources)} x {reason}: {', '.join(sources)}" for reason, sources in by_reason.items()]


_HEADER = ("target", "from", "shape", "dtype", "scales", "zero", "ends %")
# "from" may shrink to this many columns, then "target" is cut, so that a row fits TEXT_COLUMNS.
_MIN_NAME = 12


def _row(entry: ReportEntry) -> tuple[str, ...]:
    where = f"{_short(entry.source_class)} -> {_short(entry.target_class)}"
    return (
        entry.target,
        where,
        shape_text(entry.shape),
        entry.dtype,
        _span(entry.scale_min, entry.scale_max, ".2e"),
        _span(entry.zero_point_min, entry.zero_point_max, "g"),
        percent_digits(entry.saturated_share),
    )


def _short(qualified: str) -> str:
    """The class name, with the package that tells torch's quantized Linear from the float one."""
    return ".".join(qualified.split(".")[-2:])


def _span(low: float | None, high: float | None, spec: str) -> str:
    if low is None or high is None:
        return ""
    return f"{low:{spec}}" if low == high else f"{low:{spec}}..{high:{spec}}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    excess = sum(widths) + 2 * (len(widths) - 1) - TEXT_COLUMNS
    for column in (1, 0, 2):
        cut = max(0, min(excess, widths[column] - _MIN_NAME))
        widths[column] -= cut
        excess -= cut
    for row in [header, *rows]:
        cells = (clip(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
