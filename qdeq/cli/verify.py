"""``qdeq verify``: whether a converted file holds exactly what its source stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qdeq
from qdeq.cli.comparison import equal_bits
from qdeq.cli.console import Advance, console, print_table, progress
from qdeq.cli.selection import Selection
from qdeq.cli.status import DIFFERENT, DONE
from qdeq.weights.block_weight import BlockWeight
from qdeq.weights.blocks import Weight, float_block, weight_blocks
from qdeq.weights.native import OUT_DTYPES
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name, shape_text

__all__ = ["verify"]


def verify(src: Path, dst: Path, only: Sequence[str], renames: Sequence[str], prefix: str, everything: bool) -> int:
    """Run the command; ``commands.py`` says what each option means."""
    with qdeq.open(src, everything=everything) as source, qdeq.open(dst) as target:
        chosen = Selection(source, only, renames, prefix)
        dtype = _dtype_of(chosen, target)
        rows = []
        with progress("verifying", sum(chosen.entry(name).bytes for name in chosen)) as advance:
            for name in chosen:
                if problem := _check(chosen, target, name, dtype, advance):
                    rows.append((name, problem))
        rows += [(name, "not in SRC") for name in target if name not in chosen]
        rows += _check_activations(chosen, target) if dtype is None else []
        out = console()
        if rows:
            print_table(out, ("name", "problem"), rows)
            out.print(f"different: {len(rows)} of {len(chosen)} tensors of {src} are not in {dst} as they should be")
            return DIFFERENT
        how = "as they are" if dtype is None else f"as {dtype_name(dtype)}"
        out.print(f"equal: all {len(chosen)} tensors of {src} are in {dst} {how}, bit for bit")
    return DONE


def _check_activations(source: Selection, target: Any) -> list[tuple[str, str]]:
    """Scales and zero points that a file with integers does not hold as they are; one without any has none to hold."""
    theirs = target.activation_qparams
    mine = source.activation_qparams
    wrong = {path: "another" for path, qparams in mine.items() if theirs and theirs.get(path) != qparams}
    wrong |= {path: "not in SRC: a" for path in theirs if path not in mine}
    return [(path or "(model)", f"{what} scale or zero point of the activation") for path, what in wrong.items()]


def _dtype_of(source: Selection, target: Any) -> torch.dtype | None:
    """Dtype that floating tensors were converted to; None if they were kept as they were."""
    converted = [name for name in target if not source.keeps_dtypes or _is_quantized(source, name)]
    entries = [target.entry(name) for name in converted]
    if any(entry.qscheme is not None for entry in entries):
        return None
    names = {entry.dtype for entry in entries}
    found = [dtype for dtype in OUT_DTYPES if dtype_name(dtype) in names]
    return found[0] if found else torch.float32


def _is_quantized(source: Selection, name: str) -> bool:
    return name in source and source.entry(name).qscheme is not None


def _check(source: Selection, target: Any, name: str, dtype: torch.dtype | None, advance: Advance) -> str:
    """Word what is wrong with a weight; empty if nothing is."""
    entry = source.entry(name)
    if name not in target:
        problem = "missing"
    elif target.entry(name).shape != entry.shape:
        problem = f"shape {shape_text(target.entry(name).shape)}, expected {shape_text(entry.shape)}"
    else:
        mine = source[name]
        wanted = mine.dtype if isinstance(mine, Tensor) and source.keeps_dtypes else dtype
        problem = _check_values(mine, target[name], wanted, f"{source.path}: {name}")
    source.release()
    target.release()
    advance(name, entry.bytes)
    return problem


def _check_values(mine: Weight, theirs: Weight, dtype: torch.dtype | None, where: str) -> str:
    if isinstance(theirs, QuantizedWeight):
        return _check_kept(mine, theirs)
    if isinstance(theirs, BlockWeight):
        return "codes with a grid of scales, expected floats"
    if not isinstance(mine, Tensor):
        wanted = dtype
    else:
        wanted = dtype if mine.dtype.is_floating_point and dtype is not None else mine.dtype
    if theirs.dtype != wanted or wanted is None:
        return f"{dtype_name(theirs.dtype)}, expected {_name(wanted)}"
    differ = 0
    for index in weight_blocks(mine):
        block = float_block(mine, index, where=where, dtype=wanted)
        same = equal_bits(block, theirs[index])
        if isinstance(mine, BlockWeight):
            same |= block.isnan() & theirs[index].isnan()  # a NaN's other bits are nobody's
        differ += same.numel() - int(same.count_nonzero())
    return f"{differ:,} of {theirs.numel():,} values differ" if differ else ""


def _name(dtype: torch.dtype | None) -> str:
    return "integers with scales" if dtype is None else dtype_name(dtype)


def _check_kept(mine: Weight, theirs: QuantizedWeight) -> str:
    if not isinstance(mine, QuantizedWeight):
        return "quantized, expected a plain tensor"
    for field in ("dtype", "qscheme", "axis"):
        if getattr(mine, field) != getattr(theirs, field):
            return f"{field} {getattr(theirs, field)}, expected {getattr(mine, field)}"
    for field in ("int_repr", "scale", "zero_point"):
        same = equal_bits(getattr(mine, field), getattr(theirs, field))
        if differ := same.numel() - int(same.count_nonzero()):
            return f"{differ:,} of {same.numel():,} values of {field} differ"
    return ""
