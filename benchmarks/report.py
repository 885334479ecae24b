"""Turn pytest-benchmark's JSON into the table of docs/performance.md.

    python benchmarks/report.py results.json [--output docs/performance.md]

Ratios are medians over medians of one run. A row within 1.05 of the bare loop is at the memory's limit, and its other
goals count as met.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

AT_THE_LIMIT = 1.05
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
BOUNDS = ("bare loop", "fresh memset", "plain kernel")  # limits, for which a goal is an upper bound


def rows(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Each case with minimum and median per candidate, in seconds."""
    found = []
    for entry in data["benchmarks"]:
        info = entry["extra_info"]
        if "times" not in info:
            continue
        stats = {name: (min(times), statistics.median(times)) for name, times in info["times"].items() if times}
        found.append({**info, "stats": stats})
    return found


def seconds(value: float) -> str:
    """Format a time with a fitting unit."""
    return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.2f} us"


def verdict(row: dict[str, Any]) -> str:
    """Say which goals are met: ``>= 15 torch: yes (17.1)``."""
    medians = {name: median for name, (_, median) in row["stats"].items()}
    ours = medians["qdeq"]
    at_limit = "bare loop" in medians and ours <= AT_THE_LIMIT * medians["bare loop"]
    said = []
    for name, goal in row["goal"].items():
        if name not in medians:
            said.append(f"{name}: not measured")
        elif name in BOUNDS:
            ratio = ours / medians[name]
            said.append(f"<= {goal:g} x {name}: {'yes' if ratio <= goal else '**no**'} ({ratio:.2f})")
        else:
            ratio = medians[name] / ours
            met = "yes" if ratio >= goal else "at the limit" if at_limit else "**no**"
            said.append(f">= {goal:g} x {name}: {met} ({ratio:.1f})")
    return "; ".join(said)


def table(found: list[dict[str, Any]]) -> list[str]:
    """One line per case: qdeq's times, the factor to each peer, the ratio to each limit, goals."""
    lines = [
        "| case | qdeq min / median | GB/s written | faster than | time over limit | goals |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found:
        least, ours = row["stats"]["qdeq"]
        peers = ", ".join(f"{p} {row['stats'][p][1] / ours:.2f}" for p in row["peers"])
        limits = ", ".join(f"{name} {ours / row['stats'][name][1]:.2f}" for name in row["limits"])
        rate = row["out_bytes"] / ours / 1e9
        lines.append(
            f"| {row['case']} | {seconds(least)} / {seconds(ours)} | {rate:.1f} | {peers} | {limits} | {verdict(row)} |"
        )
    return lines


def machine(data: dict[str, Any]) -> list[str]:
    """Name the machine, the versions and the threads of the run."""
    info = data["machine_info"]
    qdeq = info["qdeq"]
    load = info.get("load")
    busy = "" if load is None else f" Load average at the end: {load:.1f}"
    if load is not None and load > info["threads"] + 1:
        busy += ": **the machine was busy with other work, so times are too long and ratios uncertain**"
    return [
        f"{info['cpu'].get('brand_raw', 'unknown CPU')}, {info['threads']} threads, last-level cache "
        f"{qdeq['last_level_cache_bytes'] >> 20} MiB, {info['platform']}; torch {qdeq['torch']}, Python "
        f"{info['python_version']}, compiler {qdeq['compiler']}, kernel sets {', '.join(qdeq['kernels'])}. "
        f"Taken {data['datetime'][:10]}.{busy}{'.' if busy else ''}",
    ]


def main() -> int:
    """Rewrite the part of the document between the two markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs/performance.md"))
    arguments = parser.parse_args()
    data = json.loads(arguments.json.read_text())
    found = rows(data)
    sys.stdout.write("\n".join(table(found)) + "\n")
    if data["machine_info"]["quick"]:
        sys.stdout.write("Quick run: the figures mean little, and the document stays as it is.\n")
        return 0
    figures = [*machine(data), "", *table(found)]
    document = arguments.output.read_text()
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments.output.write_text("\n".join([before + BEGIN, *figures, END + after]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
