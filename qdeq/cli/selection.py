"""Which weights of a file a command works on, and under which names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Selection", "selection_options"]

Function = TypeVar("Function", bound=Callable[..., Any])


def selection_options(function: Function) -> Function:
    """Add ``--only`` and ``--rename``."""
    only = "Take only weights whose names match, such as 'features.*'; may be given more than once."
    rename = (
        "Call a weight, or everything below a dotted name, by another: module= takes the first part away, "
        "encoder=backbone replaces it; may be given more than once."
    )
    function = click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help=rename)(function)
    return click.option("--only", multiple=True, metavar="GLOB", help=only)(function)


class Selection(Mapping[str, QuantizedWeight | Tensor]):
    """Part of an open file under other names, with the same methods.

    Args:
        source: from :func:`qdeq.open`.
        only: patterns of names in ``source``; all if there are none.
        renames: ``OLD=NEW`` each, for whole names or leading parts of them up to a dot.

    Attributes:
        source: the file.
        left_out: names that no pattern matches.

    Raises:
        QdeqValueError: a pattern or a name that fits nothing, or two weights that would have one name.

    """

    def __init__(self, source: Any, only: Sequence[str], renames: Sequence[str]) -> None:
        self.source = source
        taken = [name for name in source if not only or any(fnmatch.fnmatchcase(name, glob) for glob in only)]
        for glob in only:
            if not fnmatch.filter(source, glob):
                remedy = f"qdeq inspect {source.path} lists the names."
                raise QdeqValueError(expected("--only", f"a name in {source.path}", repr(glob), remedy))
        kept = set(taken)
        self.left_out = [name for name in source if name not in kept]
        pairs = [_pair(text, taken) for text in renames]
        self._names: dict[str, str] = {}
        for name in taken:
            new = _renamed(name, pairs)
            if new in self._names:
                remedy = "Give them different names."
                got = f"{new} for {self._names[new]} and {name}"
                raise QdeqValueError(expected("--rename", "a name for each weight", got, remedy))
            self._names[new] = name

    def __getitem__(self, name: str) -> QuantizedWeight | Tensor:
        value: QuantizedWeight | Tensor = self.source[self._names[name]]
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def entry(self, name: str) -> Any:
        """Describe one weight without reading it."""
        return self.source.entry(self._names[name])

    def release(self) -> None:
        """Give back the memory of what was read."""
        self.source.release()

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.source.path)


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
