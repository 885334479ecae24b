"""``qdeq diff``: two files, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import qdeq
from qdeq.cli.comparison import Difference, compare
from qdeq.cli.console import Advance, console, print_table, progress
from qdeq.cli.status import DIFFERENT, DONE
from qdeq.words import shape_text

__all__ = ["diff"]


@click.command(short_help="Compare the weights of two files.")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="List equal tensors, too.")
def diff(a: Path, b: Path, show_all: bool) -> int:
    """Compare the weights of two files, quantized or float, in any format.

    Weights of one name are compared as the float32 values that they stand for.

    \b
    equal %    share of values that are equal bit for bit
    max, mean  absolute difference over all values of the weight

    Exit status: 0 equal, 1 different, 2 an error.
    """  # noqa: D301 (click wants the character itself, not what a raw docstring has)
    with qdeq.open(a) as first, qdeq.open(b) as second:
        common = [name for name in first if name in second]
        total = sum(first.entry(name).bytes for name in common)
        with progress("comparing", total) as advance:
            found = {name: _compare(first, second, name, advance) for name in common}
        missing = [name for name in first if name not in second]
        extra = [name for name in second if name not in first]
    rows = [row for name, result in found.items() if (row := _row(name, result, show_all))]
    rows += [(name, f"only in {a.name}", "", "", "") for name in missing]
    rows += [(name, f"only in {b.name}", "", "", "") for name in extra]
    out = console()
    if rows:
        print_table(out, ("name", "result", ">equal %", ">max", ">mean"), rows)
    for line in _summary(found):
        out.print(line)
    different = bool(missing or extra) or any(isinstance(r, str) or r.equal != r.values for r in found.values())
    if different:
        out.print(f"different: {_counts(found, missing, extra)}")
    else:
        out.print(f"equal: {len(found)} tensors")
    return DIFFERENT if different else DONE


def _compare(first: Any, second: Any, name: str, advance: Advance) -> Difference | str:
    shapes = first.entry(name).shape, second.entry(name).shape
    if shapes[0] != shapes[1]:
        result: Difference | str = f"{shape_text(shapes[0])} and {shape_text(shapes[1])}"
    else:
        result = compare(first[name], second[name], (f"{first.path}: {name}", f"{second.path}: {name}"))
    first.release()
    second.release()
    advance(name, first.entry(name).bytes)
    return result


def _row(name: str, result: Difference | str, show_all: bool) -> tuple[str, ...] | None:
    if isinstance(result, str):
        return (name, result, "", "", "")
    if result.equal == result.values and not show_all:
        return None
    what = "equal" if result.equal == result.values else "values"
    return (name, what, percent(result), f"{result.largest:.3g}", f"{result.mean:.3g}")


def percent(result: Difference) -> str:
    """Word the share of equal values: 100 only if all are."""
    share = 100 * result.share
    return f"{share:.2f}" if result.equal == result.values or share < 99.995 else "<100"


def _summary(found: dict[str, Difference | str]) -> list[str]:
    lines = []
    for title, is_bias in (("weights", False), ("biases", True)):
        total = Difference()
        for name, result in found.items():
            if isinstance(result, Difference) and _is_bias(name) is is_bias:
                total.add(result)
        if total.values:
            lines.append(f"{title}: {percent(total)} % of {total.values:,} values are equal bit for bit")
    return lines


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]  # bias, bias_ih_l0, in_proj_bias
    return last.startswith("bias") or last.endswith("_bias")


def _counts(found: dict[str, Difference | str], missing: list[str], extra: list[str]) -> str:
    shapes = sum(isinstance(result, str) for result in found.values())
    values = sum(isinstance(result, Difference) and result.equal != result.values for result in found.values())
    counts = (("values", values), ("shapes", shapes), ("only in A", len(missing)), ("only in B", len(extra)))
    return ", ".join(f"{count} {what}" for what, count in counts if count)
