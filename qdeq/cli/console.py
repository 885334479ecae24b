"""How commands talk: tables that fit the terminal, plain text into a pipe, bars on a terminal's stderr only."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich import progress as bars
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

__all__ = ["COUNTS", "Advance", "console", "print_item", "print_table", "progress", "rate_text", "size_text", "warn"]

PIPE_COLUMNS = 100_000
"""Into a pipe, lines are as long as they have to be: nothing is cut or folded."""

WIDE_COLUMNS = 100

BYTES = (bars.DownloadColumn, bars.TransferSpeedColumn)
COUNTS = (bars.MofNCompleteColumn, bars.TimeRemainingColumn)
"""What a bar says beside itself."""


class Advance(Protocol):
    """Called with what is being worked on and how much of it was just done."""

    def __call__(self, name: str, amount: int, /) -> object:
        """Move the bar."""


def console(stream: TextIO | None = None) -> Console:
    """Return a console on a stream, stdout by default: without colours and folding unless it is a terminal."""
    stream = sys.stdout if stream is None else stream
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=terminal,
        width=None if terminal else PIPE_COLUMNS,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=not terminal,
    )


def warn(text: str) -> None:
    """Print a line on stderr."""
    print(f"qdeq: warning: {text}", file=sys.stderr)


def size_text(size: int) -> str:
    """Word a number of bytes: ``999 bytes``, ``1.50 KB`` (1500 bytes), ``113 MB``, ``2.00 GB``."""
    if size < 1000:
        return f"{size} bytes"
    for unit, scale in (("KB", 10**3), ("MB", 10**6), ("GB", 10**9), ("TB", 10**12)):
        value = size / scale
        if value < 999.5 or unit == "TB":
            break
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"


def rate_text(size: int, seconds: float) -> str:
    """Word bytes per second, in MB/s."""
    rate = size / 1e6 / max(seconds, 1e-9)
    return f"{rate:.0f} MB/s" if rate >= 10 else f"{rate:.2g} MB/s"


def print_item(target: Console, text: str) -> None:
    """Print a line of a list, indented; what does not fit on a terminal's line is indented as well."""
    target.print(Padding(text, (0, 0, 0, 2), expand=False) if target.is_terminal else f"  {text}")


def print_table(target: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column gives way, by folding, where the terminal is narrow.

    A heading that begins with ``>`` is for numbers, which end at the right.
    """
    gap = 2 if target.width >= WIDE_COLUMNS else 1
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for position, heading in enumerate(columns):
        right = heading.startswith(">")
        table.add_column(
            heading.removeprefix(">"), justify="right" if right else "left", overflow="fold", no_wrap=position > 0
        )
    for row in rows:
        table.add_row(*row)
    if target.is_terminal:
        target.print(table)
        return
    with target.capture() as capture:
        target.print(table)
    for line in capture.get().splitlines():
        target.print(line.rstrip())


@contextmanager
def progress(
    title: str, total: int, *, columns: Sequence[type[bars.ProgressColumn]] = BYTES, on: Console | None = None
) -> Iterator[Advance]:
    """Show a bar while the block runs, on stderr by default, if that is a terminal.

    ``columns`` say what the total counts: :data:`BYTES` or :data:`COUNTS`.
    """
    on = console(sys.stderr) if on is None else on
    if not on.is_terminal:
        yield lambda name, amount: None
        return
    shown = (bars.TextColumn("{task.description}"), bars.BarColumn(bar_width=24), *(column() for column in columns))
    with bars.Progress(*shown, console=on, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda name, amount: bar.update(task, advance=amount)
