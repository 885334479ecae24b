"""Values out of a file that may be damaged, or made to do harm: worded, checked, refused."""

from __future__ import annotations

from typing import NoReturn

from qdeq.errors import QdeqValueError, expected

__all__ = ["DAMAGED", "is_size", "refuse", "shown"]

DAMAGED = "The file is damaged: get a fresh copy."
_SHOWN = 80


def shown(value: object) -> str:
    """Word a value that came out of a file: no control characters, never longer than a line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >> 128:
        return "an integer of more than 128 bits"
    try:
        text = ascii(value)
    except ValueError:  # Python writes no integer of thousands of digits out
        return f"a {type(value).__name__} with an integer of more than 128 bits"
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def is_size(value: object) -> bool:
    """Whether a number can be a size or an offset."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def refuse(where: str, what: str, got: str, remedy: str = DAMAGED) -> NoReturn:
    """Raise the one kind of error that readers of files raise.

    Args:
        where: ``file: key``, or the file alone while no key is known.
        what: what would have been right.
        got: what was found, already worded by :func:`shown` if it came out of the file.
        remedy: full sentences.

    """
    raise QdeqValueError(expected(where, what, got, remedy))
