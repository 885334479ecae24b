"""The command line: ``qdeq`` and ``python -m qdeq``. Needs the packages of the extra ``cli``, and says so."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from qdeq.errors import expected

__all__ = ["main"]

NEEDED = ("click", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit status: 0 done or equal, 1 different (diff, verify, explain), 2 an error, 130 stopped by Ctrl-C.

    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        remedy = 'Install them: pip install "qdeq[cli]"'
        print(expected("qdeq", "the packages of the extra cli", f"no {', '.join(missing)}", remedy), file=sys.stderr)
        return 2
    from qdeq.cli.app import run

    return run(argv)
