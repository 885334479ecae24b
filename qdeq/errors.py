"""The one family of errors: every failure that qdeq foresees is a :class:`QdeqError`.

Messages read ``<where>: expected <what>, got <value>. <what to do>``; *where* is an argument, a dotted module
path, or a file and key.
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["QdeqError", "QdeqTypeError", "QdeqValueError", "expected", "refuse"]


class QdeqError(Exception):
    """Base of every error that qdeq raises on purpose."""


class QdeqValueError(QdeqError, ValueError):
    """A value of the right type that cannot be used: shape, scale, zero point, name, file content."""


class QdeqTypeError(QdeqError, TypeError):
    """An object of a type that qdeq does not take."""


def expected(where: str, what: str, got: object, remedy: str) -> str:
    """Word a message the house's way.

    Args:
        where: argument, dotted module path, or ``file: key``.
        what: what would have been right, without a full stop.
        got: what was there instead.
        remedy: one or more full sentences that say what to do.

    """
    return f"{where}: expected {what}, got {got}. {remedy}"


def refuse(where: str, what: str, got: object, remedy: str) -> NoReturn:
    """Raise the :class:`QdeqValueError` that :func:`expected` words."""
    raise QdeqValueError(expected(where, what, got, remedy))
