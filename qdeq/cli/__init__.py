"""The command line: ``qdeq`` and ``python -m qdeq``. Needs the packages of the extra ``cli``, and says so."""

from __future__ import annotations

from collections.abc import Sequence

from qdeq.cli.status import ERROR, lacks_packages

__all__ = ["main"]

NEEDED = ("click", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit status: 0 done or equal, 1 different (diff, verify, explain), 2 an error, 130 stopped by Ctrl-C.

    """
    if lacks_packages("qdeq", "cli", NEEDED):
        return ERROR
    from qdeq.cli.app import run

    return run(argv)
