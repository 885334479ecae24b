"""Nothing is lost in silence: every source tensor is used or named, every target parameter is written."""

from __future__ import annotations

from collections.abc import Iterable

from qdeq.errors import QdeqValueError, expected

__all__ = ["check_account"]


def check_account(unused: Iterable[str], unwritten: Iterable[str]) -> None:
    """Refuse a conversion that forgot something.

    Args:
        unused: dotted names of sources that were neither read nor named as dropped.
        unwritten: dotted names of parameters that nothing was written to.

    Raises:
        QdeqValueError: there is one.

    """
    lost, empty = list(unused), sorted(set(unwritten))
    if lost or empty:
        got = f"unused sources {lost}, unwritten parameters {empty}"
        remedy = "The builder of these modules is incomplete."
        raise QdeqValueError(expected("model", "every tensor accounted for", got, remedy))
