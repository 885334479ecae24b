"""Values that came out of a file: nothing is taken on trust, and what is refused is worded here."""

from __future__ import annotations

import reprlib
from typing import NoReturn, TypeGuard

from qdeq.errors import QdeqValueError, expected
from qdeq.words import clip

__all__ = ["DAMAGED", "is_size", "refuse", "shown"]

DAMAGED = "The file is damaged: get a fresh copy."
_SHOWN = 80
_LEVELS, _ITEMS = 3, 12  # of containers: one that holds the next twice, forty times over, unfolds without end


class _Bounded(reprlib.Repr):
    """``repr`` of plain values in bounded time, whatever they hold; other objects by their class."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = _LEVELS
        self.maxtuple = self.maxlist = self.maxdict = _ITEMS

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write thousands of digits out, and takes seconds for millions where it does not.
        return "an integer of more than 128 bits" if abs(value) >> 128 else repr(value)

    def repr_str(self, value: str, level: int) -> str:
        return repr(value[: 2 * _SHOWN])

    def repr_instance(self, value: object, level: int) -> str:
        if isinstance(value, bytes | bytearray | memoryview):
            return repr(bytes(value[: 2 * _SHOWN]))
        return str(value) if isinstance(value, float | bool | None) else f"a {type(value).__name__}"


_BOUNDED = _Bounded()


def shown(value: object) -> str:
    """Word a value that came out of a file: no control characters, never longer than a line."""
    text = _BOUNDED.repr(value).encode("ascii", "backslashreplace").decode()
    return clip(text, _SHOWN, "...")


def refuse(where: str, what: str, got: str, remedy: str = DAMAGED) -> NoReturn:
    """Raise the readers' one kind of error.

    Args:
        where: ``file: key``, or the file alone while no key is known.
        what: what would have been right.
        got: what was found, already worded by :func:`shown` if it came out of the file.
        remedy: full sentences.

    """
    raise QdeqValueError(expected(where, what, got, remedy))


def is_size(value: object) -> TypeGuard[int]:
    """Whether a number out of a file can be a size, a stride or an offset."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
