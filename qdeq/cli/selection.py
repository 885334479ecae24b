"""Which weights of a file a command works on, and under which names."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from qdeq.errors import QdeqValueError, expected
from qdeq.state_dicts.prefixes import front_of
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.blocks import Weight

__all__ = ["Selection", "dropped_lines", "some"]

NAMES_SHOWN = 3
Value = TypeVar("Value")


class Selection(WeightFile):
    """Part of an open file (``source``) under other names.

    Args:
        source: from :func:`qdeq.open`.
        only: patterns of names below ``prefix``; all if there are none.
        renames: ``OLD=NEW`` each, for whole names below ``prefix`` or leading parts of them up to a dot.
        prefix: takes what is below this path.

    Attributes:
        left_out: names that no pattern of ``only`` matches.
        outside: names that are not below ``prefix``.
        activations_left_out: modules of ``source`` whose output's quantization is not taken: they are not below
            ``prefix``, or hold weights of which ``only`` takes none.

    Raises:
        QdeqValueError: a pattern or a name that fits nothing, or two weights, outputs or constants that would have
            one name.

    """

    def __init__(self, source: WeightFile, only: Sequence[str], renames: Sequence[str], prefix: str = "") -> None:
        self.source, self.kind, self.keeps_dtypes = source, source.kind, source.keeps_dtypes
        front = front_of(prefix)
        below = [name.removeprefix(front) for name in source if name.startswith(front)]
        if front and not below:
            remedy = f"qdeq inspect {source.path} lists the names."
            raise QdeqValueError(expected("--prefix", f"the start of names in {source.path}", repr(prefix), remedy))
        self.outside = [name for name in source if not name.startswith(front)]
        taken = [name for name in below if not only or any(fnmatch.fnmatchcase(name, glob) for glob in only)]
        for glob in only:
            if not fnmatch.filter(below, glob):
                remedy = f"qdeq inspect {source.path} lists the names."
                raise QdeqValueError(expected("--only", f"a name in {source.path}", repr(glob), remedy))
        kept = set(taken)
        self.left_out = [front + name for name in below if name not in kept]
        pairs = [_pair(text, taken) for text in renames]
        self._old: dict[str, str] = {}
        for name in taken:
            new = _renamed(name, pairs)
            if new in self._old:
                remedy = "Give them different names."
                got = f"{new} for {self._old[new]} and {front}{name}"
                raise QdeqValueError(expected("--rename", "a name for each weight", got, remedy))
            self._old[new] = front + name
        super().__init__(source.path, self._old)

        # A module without weights of its own, such as a stub, belongs to no layer that was left out.
        left_out = _modules(source) - _modules(self._old.values())
        self.activation_qparams = _moved(source.activation_qparams, front, pairs, left_out)
        self.activations_left_out = [
            path for path in source.activation_qparams if path in left_out or not f"{path}.".startswith(front)
        ]
        self.constants = _moved(source.constants, front, pairs, set())
        self.doubtful = {new: source.doubtful[old] for new, old in self._old.items() if old in source.doubtful}
        self.integers = {new: source.integers[old] for new, old in self._old.items() if old in source.integers}
        self.dropped = source.dropped

    def __getitem__(self, name: str) -> Weight:
        return self.source[self._old[name]]

    def entry(self, name: str) -> Entry:
        """Describe one weight without reading it."""
        return replace(self.source.entry(self._old[name]), name=name)

    def release(self) -> None:
        """Give back the memory of what was read."""
        self.source.release()

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that this reads."""
        return self.source.files

    @property
    def unchecked(self) -> list[str]:
        """What could not be checked so far, in words."""
        return self.source.unchecked


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = len(listed) - NAMES_SHOWN
    return ", ".join(listed[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def dropped_lines(dropped: Mapping[str, str]) -> list[str]:
    """What has no place among the weights, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for source, reason in dropped.items():
        reasons.setdefault(reason, []).append(source)
    return [f"{len(names)} x {reason}: {some(names)}" for reason, names in reasons.items()]


def _pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        remedy = "For example: --rename encoder=backbone"
        raise QdeqValueError(expected("--rename", "OLD=NEW", repr(text), remedy))
    if not any(name == old or name.startswith(old + ".") for name in names):
        remedy = "OLD is a whole name, or the part of names before a dot; qdeq inspect lists the names."
        raise QdeqValueError(expected("--rename", "the name of a weight, or the start of one", repr(old), remedy))
    return old, new


def _modules(names: Iterable[str]) -> set[str]:
    """Every module that holds one of these weights, in itself or below."""
    return {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}


def _moved(
    table: Mapping[str, Value], front: str, pairs: Sequence[tuple[str, str]], left_out: Collection[str]
) -> dict[str, Value]:
    """What is said of modules and constants below the prefix ``front``, by the new names."""
    moved: dict[str, Value] = {}
    old: dict[str, str] = {}
    for path, value in table.items():
        # With a dot behind it a path is a leading part of names, also where nothing is left of it: the model itself.
        if path in left_out or not f"{path}.".startswith(front):
            continue
        new = _renamed(f"{path}.".removeprefix(front), pairs).removesuffix(".")
        if new in old:
            remedy = "Give them different names."
            got = f"{new!r} for {old[new]!r} and {path!r}"
            raise QdeqValueError(expected("--rename", "a name for each module's output and constant", got, remedy))
        moved[new], old[new] = value, path
    return moved


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name == old and new:
            return new
        if name.startswith(old + "."):
            return new + name[len(old) :] if new else name[len(old) + 1 :]
    return name
