"""``qdeq inspect``: every weight of a file."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

import qdeq
from qdeq.cli.console import Advance, console, print_table, progress, size_text, warn
from qdeq.cli.selection import Selection, dropped_lines, some
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.blocks import Weight, take, weight_blocks
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import percent_digits, shape_text, strict_json

__all__ = ["inspect"]

_SCHEMES = {
    None: "",
    "per_tensor_affine": "tensor",
    "per_channel_affine": "channel",
    "per_channel_affine_float_qparams": "float qp",
    "per_block": "block",
}


@dataclass(frozen=True)
class Row:
    """One weight, or the output of a module that is quantized, by the names that ``--json`` uses."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    qscheme: str | None
    scale_min: float | None
    scale_max: float | None
    saturated_share: float | None
    bytes: int
    kind: str = "weight"
    zero_point: int | None = None  # of an activation; those of weights are one for each channel


def _saturated_share(value: Weight) -> float | None:
    if not isinstance(value, QuantizedWeight):
        return None
    at_ends = 0.0
    for index in weight_blocks(value):
        block = take(value, index)
        at_ends += block.saturated_share() * math.prod(block.shape)
    return round(at_ends) / max(math.prod(value.shape), 1)


def _rows(source: Any, advance: Advance) -> list[Row]:
    rows = []
    unreleased = 0
    for name in source:
        entry = source.entry(name)
        share = _saturated_share(source[name]) if entry.qscheme is not None else None
        rows.append(
            Row(name, entry.shape, entry.dtype, entry.qscheme, entry.scale_min, entry.scale_max, share, entry.bytes)
        )
        advance(name, entry.bytes)
        unreleased += entry.bytes
        if unreleased > 32 << 20:
            source.release()
            unreleased = 0
    return rows


def _activations(source: WeightFile) -> list[Row]:
    return [
        Row(path, (), "", "per_tensor_affine", scale, scale, None, 0, "activation", zero_point)
        for path, (scale, zero_point) in source.activation_qparams.items()
    ]


def _scales(row: Row) -> str:
    if row.scale_min is None or row.scale_max is None:
        return ""
    low, high = (f"{scale:.1e}".replace("e-0", "e-").replace("e+0", "e+") for scale in (row.scale_min, row.scale_max))
    return low if low == high else f"{low}..{high}"


def inspect(file: Path, as_json: bool, activations: bool, prefix: str, everything: bool) -> None:
    """Run the command; ``commands.py`` says what each option means."""
    with qdeq.open(file, everything=everything) as opened:
        source = Selection(opened, (), (), prefix)
        outputs, rows = _activations(source), []
        if not activations:
            with progress("reading", sum(source.entry(name).bytes for name in source)) as advance:
                rows = _rows(source, advance)
        for text in source.warnings:
            warn(text)
        if as_json:
            click.echo(strict_json([asdict(row) for row in (*rows, *outputs)]))
        elif activations:
            _show_activations(source, outputs)
        else:
            _show_weights(source, rows)


def _show_activations(source: Selection, outputs: list[Row]) -> None:
    out = console()
    if outputs:
        # repr: the shortest text that reads back as the same double
        cells = [(row.name or "(model)", repr(row.scale_min), str(row.zero_point)) for row in outputs]
        print_table(out, ("output of", "scale", ">zero point"), cells)
    out.print(f"{len(outputs)} scales of activations")
    if outside := source.activations_left_out:
        out.print(f"not listed: {len(outside)} scales of activations outside --prefix: {some(outside)}")


def _show_weights(source: Selection, rows: list[Row]) -> None:
    cells = [
        (
            row.name,
            shape_text(row.shape),
            row.dtype,
            _SCHEMES[row.qscheme],
            _scales(row),
            percent_digits(row.saturated_share),
            size_text(row.bytes),
        )
        for row in rows
    ]
    out = console()
    print_table(out, ("name", "shape", "dtype", "scheme", "scales", ">ends%", ">size"), cells)
    quantized = sum(row.qscheme is not None for row in rows)
    total = size_text(sum(row.bytes for row in rows))
    values = sum(math.prod(row.shape) for row in rows)
    out.print(f"{len(rows)} tensors, {quantized} of them quantized; {values:,} values in {total}")
    if source.activation_qparams:
        out.print(f"{len(source.activation_qparams)} scales of activations, which are not weights")
    for line in (*_outside(source), *dropped_lines(source.dropped)):
        out.print(f"not listed: {line}")


def _outside(source: Selection) -> list[str]:
    return [f"{len(source.outside)} tensors outside --prefix: {some(source.outside)}"] if source.outside else []
