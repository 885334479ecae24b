"""Exit statuses of every command, and the one reason not to begin: packages of an extra that are not installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from qdeq.errors import expected

__all__ = ["DIFFERENT", "DONE", "ERROR", "STOPPED", "TERMINATED", "lacks_packages"]

DONE, DIFFERENT, ERROR = 0, 1, 2
STOPPED, TERMINATED = 130, 143  # 128 and the number of SIGINT, of SIGTERM


def lacks_packages(program: str, extra: str, needed: Sequence[str]) -> bool:
    """Whether any of the packages cannot be imported; then stderr says which extra of qdeq installs them."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f'Install them: pip install "qdeq[{extra}]"'
        print(
            expected(program, f"the packages of the extra {extra}", f"no {', '.join(missing)}", remedy), file=sys.stderr
        )
    return bool(missing)
