"""Which weights of a file a command works on, and under which names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Selection"]


class Selection(WeightFile):
    """Part of an open file (``source``) under other names; ``left_out`` are the names that no pattern matches.

    Args:
        source: from :func:`qdeq.open`.
        only: patterns of names in ``source``; all if there are none.
        renames: ``OLD=NEW`` each, for whole names or leading parts of them up to a dot.

    Raises:
        QdeqValueError: a pattern or a name that fits nothing, or two weights that would have one name.

    """

    def __init__(self, source: WeightFile, only: Sequence[str], renames: Sequence[str]) -> None:
        self.source, self.kind = source, source.kind
        taken = [name for name in source if not only or any(fnmatch.fnmatchcase(name, glob) for glob in only)]
        for glob in only:
            if not fnmatch.filter(source, glob):
                remedy = f"qdeq inspect {source.path} lists the names."
                raise QdeqValueError(expected("--only", f"a name in {source.path}", repr(glob), remedy))
        kept = set(taken)
        self.left_out = [name for name in source if name not in kept]
        pairs = [_pair(text, taken) for text in renames]
        self._old: dict[str, str] = {}
        for name in taken:
            new = _renamed(name, pairs)
            if new in self._old:
                remedy = "Give them different names."
                got = f"{new} for {self._old[new]} and {name}"
                raise QdeqValueError(expected("--rename", "a name for each weight", got, remedy))
            self._old[new] = name
        super().__init__(source.path, self._old)
        self.activation_qparams = {_renamed(path, pairs): value for path, value in source.activation_qparams.items()}
        self.constants = {_renamed(name, pairs): value for name, value in source.constants.items()}
        self.doubtful = {new: source.doubtful[old] for new, old in self._old.items() if old in source.doubtful}
        self.dropped = source.dropped

    def __getitem__(self, name: str) -> QuantizedWeight | Tensor:
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


def _pair(text: str, names: Sequence[str]) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals or not old:
        remedy = "For example: --rename encoder=backbone"
        raise QdeqValueError(expected("--rename", "OLD=NEW", repr(text), remedy))
    if not any(name == old or name.startswith(old + ".") for name in names):
        remedy = "OLD is a whole name, or the part of names before a dot; qdeq inspect lists the names."
        raise QdeqValueError(expected("--rename", "the name of a weight, or the start of one", repr(old), remedy))
    return old, new


def _renamed(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        if name == old and new:
            return new
        if name.startswith(old + "."):
            return new + name[len(old) :] if new else name[len(old) + 1 :]
    return name
