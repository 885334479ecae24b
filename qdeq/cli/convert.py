"""``qdeq convert``: a file of quantized weights to safetensors, or an ONNX model to a float one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import qdeq
from qdeq.cli.console import console, print_item, print_table, progress, rate_text, size_text, warn
from qdeq.cli.convert_folder import convert_folder, refuse_for_folders
from qdeq.cli.onnx_models import check_whole, convert_onnx, export_onnx
from qdeq.cli.selection import Selection, dropped_lines, some
from qdeq.errors import QdeqValueError, expected
from qdeq.files.onnx_model.recognise import SUFFIX as ONNX_SUFFIX
from qdeq.files.safetensors.layout import SUFFIX, Options, Plan, parse_size, plan_safetensors
from qdeq.files.safetensors.writing import Saved, check_plan, touched_files, write_plan
from qdeq.words import dtype_name, shape_text

__all__ = ["convert"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert(
    src: Path,
    dst: Path,
    dtype: str | None,
    shard_size: str | None,
    keep: str | None,
    dry_run: bool,
    force: bool,
    only: Sequence[str],
    renames: Sequence[str],
    prefix: str,
    everything: bool,
    activations: str,
    inputs: Sequence[str],
) -> None:
    """Run the command; ``commands.py`` says what each option means."""
    if src.is_dir():
        given = {"--shard-size": shard_size, "--keep": keep, "--force": force, "--rename": renames, "--prefix": prefix}
        refuse_for_folders({**given, "--all": everything})
        convert_folder(src, dst, DTYPES[dtype or "bfloat16"], only, dry_run)
        return
    if dst.suffix == ONNX_SUFFIX:
        check_whole(any((dtype not in (None, "float32"), shard_size, keep, dry_run, only, renames, prefix, everything)))
        if inputs:
            export_onnx(src, dst, inputs, activations, force)
        else:
            convert_onnx(src, dst, activations, force)
        return
    if inputs:
        remedy = "Weights are read without running the model."
        raise QdeqValueError(expected("--input", f"a DST that ends in {ONNX_SUFFIX}", str(dst), remedy))
    if activations != "drop":
        remedy = "A safetensors file holds weights, which no activation rounds."
        raise QdeqValueError(expected("--activations", f"a DST that ends in {ONNX_SUFFIX}", str(dst), remedy))
    _check_suffix(dst)
    limit = None if shard_size is None else parse_size(shard_size, "--shard-size")
    begin = time.perf_counter()
    with qdeq.open(src, everything=everything) as source:
        chosen = Selection(source, only, renames, prefix)
        plan = plan_safetensors(chosen, dst, Options(DTYPES[dtype or "float32"], limit, keep, force))
        _refuse_source(source, plan)
        check_plan(plan)
        if dry_run:
            _show_plan(plan)
        else:
            with progress(f"writing {dst.name}", plan.bytes) as advance:
                saved = write_plan(plan, chosen, advance)
            _show_summary(plan, saved, time.perf_counter() - begin)
        _show_rest(chosen, plan)


def _check_suffix(dst: Path) -> None:
    if dst.suffix != SUFFIX:
        remedy = (
            f"The format written is safetensors: try {dst.with_suffix(SUFFIX).name if dst.name else 'model' + SUFFIX}."
        )
        raise QdeqValueError(expected("DST", f"a name that ends in {SUFFIX}", str(dst), remedy))


def _refuse_source(source: Any, plan: Plan) -> None:
    """Not even with --force: the source is what a mistake could be undone with."""
    for mine in touched_files(plan):
        if any(mine.samefile(theirs) for theirs in source.files):
            raise QdeqValueError(expected("DST", "another file than SRC", str(mine), "Choose another name."))


def _show_plan(plan: Plan) -> None:
    out = console()
    rows = []
    for item in plan.items:
        stored = "kept" if item.kept else dtype_name(item.stored[0][1])
        rows.append((item.name, shape_text(item.shape), item.source_dtype, stored, size_text(item.bytes)))
    print_table(out, ("name", "shape", "from", "to", ">size"), rows)
    out.print(f"would write {size_text(plan.bytes)} to {_files(plan)}; nothing was written")


def _files(plan: Plan) -> str:
    if len(plan.shards) == 1:
        return str(plan.path)
    return f"{len(plan.shards)} shards, {plan.files[0]} ... and {plan.index}"


def _show_summary(plan: Plan, saved: Saved, seconds: float) -> None:
    out = console()
    out.print(f"{_files(plan)}: {size_text(saved.bytes)} in {seconds:.2f} s, {rate_text(saved.bytes, seconds)}")
    quantized = [item for item in plan.items if item.qscheme is not None]
    kept = sum(item.kept for item in quantized)
    done = f"{kept} weights kept as integers" if kept else f"{len(quantized)} weights dequantized"
    scales = f", {len(plan.activations) // 2} scales and zero points of activations" if plan.activations else ""
    out.print(f"{done}, {saved.tensors - len(quantized)} other tensors{scales}")


def _show_rest(chosen: Selection, plan: Plan) -> None:
    out = console()
    rest = []
    for names, reason in ((chosen.outside, "outside --prefix"), (chosen.left_out, "left out by --only")):
        if names:
            rest.append(f"{len(names)} tensors {reason}: {some(names)}")
    everyone, some_left = list(chosen.source.activation_qparams), chosen.activations_left_out
    scales, why = (some_left, "of what is left out") if plan.activations else (everyone, "which are not weights")
    if scales:
        rest.append(f"{len(scales)} scales of activations, {why}: {some(scales)}")
    rest += dropped_lines(chosen.dropped)
    out.print("not converted:" if rest else "not converted: nothing")
    for line in rest:
        print_item(out, line)
    for text in (*plan.notes, *chosen.warnings):
        warn(text)
