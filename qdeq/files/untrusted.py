"""Values that came out of a file: nothing is taken on trust, and what is refused is worded here."""

from __future__ import annotations

from typing import NoReturn, TypeGuard

from qdeq.errors import QdeqValueError, expected

__all__ = ["DAMAGED", "is_size", "refuse", "shown"]

DAMAGED = "The file is damaged: get a fresh copy."
_SHOWN = 80


def shown(value: object) -> str:
    """Word a value that came out of a file: no control characters, never longer than a line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 128:
        return "an integer of more than 128 bits"
    text = ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


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
