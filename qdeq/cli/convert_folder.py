"""``qdeq convert`` of a folder: a released checkpoint to a dense one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from qdeq.cli.console import console, print_item, print_table, progress, rate_text, size_text, warn
from qdeq.cli.selection import dropped_lines, some
from qdeq.errors import QdeqValueError, expected
from qdeq.files.released.converting import check_target, write_folder
from qdeq.files.released.plan import FolderPlan, plan_folder
from qdeq.words import dtype_name, shape_text

__all__ = ["convert_folder", "refuse_for_folders"]


def refuse_for_folders(options: Mapping[str, object]) -> None:
    """Refuse options that are for single files, where they were given."""
    given = [name for name, value in options.items() if value]
    if given:
        remedy = "A folder keeps its shards and names; --dtype, --only and --dry-run are for folders, too."
        raise QdeqValueError(expected(given[0], "a single file as SRC", "a folder", remedy))


def convert_folder(src: Path, dst: Path, dtype: torch.dtype, only: Sequence[str], dry_run: bool) -> None:
    """Convert, or show what would be converted, and say what was not."""
    begin = time.perf_counter()
    plan = plan_folder(src, dst, dtype, only)
    with plan.source:
        check_target(plan)
        if dry_run:
            _show_plan(plan)
        else:
            with progress(f"writing {dst.name}", plan.bytes) as advance:
                write_folder(plan, advance)
            _show_summary(plan, time.perf_counter() - begin)
        _show_rest(plan)


def _show_plan(plan: FolderPlan) -> None:
    out = console()
    rows = []
    for shard in plan.shards:
        for place in shard.places:
            before = plan.source.entry(place.name).dtype
            size = size_text(place.end - place.begin)
            rows.append((place.name, shape_text(place.shape), before, dtype_name(place.dtype), size))
    print_table(out, ("name", "shape", "from", "to", ">size"), rows)
    out.print(f"would write {size_text(plan.bytes)} to {plan.dst}: {_files(plan)}; nothing was written")


def _files(plan: FolderPlan) -> str:
    return f"{len(plan.shards)} safetensors files, {len(plan.texts) + len(plan.others.copied)} others"


def _show_summary(plan: FolderPlan, seconds: float) -> None:
    out = console()
    rate = rate_text(plan.bytes, seconds)
    out.print(f"{plan.dst}: {_files(plan)}; {size_text(plan.bytes)} in {seconds:.2f} s, {rate}")
    names = [place.name for shard in plan.shards for place in shard.places]
    dense = sum(name in plan.source.weights for name in names)
    out.print(
        f"{dense} weights dequantized to {dtype_name(plan.dtype)}, {len(names) - dense} other tensors as they were"
    )


def _show_rest(plan: FolderPlan) -> None:
    out = console()
    rest = dropped_lines(plan.source.dropped)
    if plan.skipped:
        rest.append(f"{len(plan.skipped)} tensors left out by --only: {some(plan.skipped)}")
    rest += [f"file {line}" for line in dropped_lines(plan.others.left_out)]
    out.print("not converted:" if rest else "not converted: nothing")
    for line in rest:
        print_item(out, line)
    for text in plan.source.warnings:
        warn(text)
