"""``qdeq convert`` of a whole ONNX model: its graph, not its weights alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

import qdeq
from qdeq.cli.console import console, print_item, rate_text, size_text
from qdeq.errors import QdeqValueError, expected
from qdeq.files.onnx_model.recognise import looks_like_onnx
from qdeq.onnx_export.to_onnx import FLOAT_NOTE

__all__ = ["check_whole", "convert_onnx", "export_onnx"]

_DTYPES = ("float32", "int64", "int32", "bool")


def check_whole(selected: bool) -> None:
    """Refuse options that are for single weights."""
    if selected:
        remedy = (
            "A model is converted whole, as float32; write its weights to a .safetensors file to choose among them."
        )
        what = "no --dtype, --shard-size, --keep, --dry-run, --only, --rename, --prefix or --all for an ONNX model"
        raise QdeqValueError(expected("convert", what, "one of them", remedy))


def convert_onnx(src: Path, dst: Path, activations: str, force: bool) -> None:
    """Write the float form of the model in ``src`` to ``dst``.

    Args:
        src: an ONNX model.
        dst: the file to write.
        activations: as of :func:`qdeq.dequantize_onnx`.
        force: replace ``dst``.

    """
    if not looks_like_onnx(src):
        remedy = (
            "A graph can only be made from a graph: give --input for a TorchScript file, or write the weights of any "
            "other file to a .safetensors file."
        )
        raise QdeqValueError(expected("SRC", "an ONNX model, as DST is", str(src), remedy))
    begin = time.perf_counter()
    _, report = qdeq.dequantize_onnx(src, dst, activations=activations, force=force, return_report=True)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (dst, dst.with_name(f"{dst.name}.data")) if path.exists())
    screen = console()
    screen.print(f"{dst}: {size_text(size)} in {seconds:.2f} s, {rate_text(size, seconds)}")
    replaced = Counter(f"{before} -> {after}" for before, after in report.replaced.values())
    screen.print(f"{len(report.entries)} weights dequantized, {sum(replaced.values())} operators replaced")
    for line, count in replaced.items():
        print_item(screen, f"{count} x {line}")
    notes = [f"{path}: {text}" for path, texts in report.notes.items() for text in texts]
    notes += [f"{item.path}: {item.operation}: {item.reason}" for item in report.uncovered]
    screen.print(f"notes: {len(notes)}" if notes else "notes: none")
    for line in notes:
        print_item(screen, line)


def export_onnx(src: Path, dst: Path, inputs: Sequence[str], activations: str, force: bool) -> None:
    """Write an int8 TorchScript file as an int8 ONNX model.

    Args:
        src: what ``torch.jit.save`` wrote.
        dst: the file to write.
        inputs: a shape and a dtype for each input.
        activations: has to be the default.
        force: replace ``dst``.

    """
    if activations != "drop":
        remedy = "An int8 model keeps its roundings; convert the ONNX model that this writes to drop them."
        raise QdeqValueError(expected("--activations", "the default with --input", activations, remedy))
    example = tuple(_example(text) for text in inputs)
    begin = time.perf_counter()
    report = qdeq.to_onnx(src, example, dst, force=force)
    size, seconds = dst.stat().st_size, time.perf_counter() - begin
    screen = console()
    screen.print(f"{dst}: {size_text(size)} in {seconds:.2f} s, {rate_text(size, seconds)}")
    weights = [entry for entry in report.entries if entry.qscheme is not None]
    left = [f"{path}: {text}" for path, texts in report.notes.items() for text in texts if FLOAT_NOTE in text]
    screen.print(f"{len(weights) - len(left)} of {len(weights)} weights with their integers")
    rest = [*left, *(f"{item.path}: {item.operation}: {item.reason}" for item in report.uncovered)]
    screen.print("not in int8:" if rest else "not in int8: nothing")
    for line in rest:
        print_item(screen, line)


def _example(text: str) -> torch.Tensor:
    """Zeros of a shape such as ``1x3x224x224`` or ``1x128:int64``."""
    shape, _, dtype = text.partition(":")
    sizes = shape.split("x")
    if (
        not all(size.isascii() and size.isdecimal() and 0 < int(size) < 2**31 for size in sizes)
        or (dtype or _DTYPES[0]) not in _DTYPES
    ):
        remedy = f"Dtypes are {', '.join(_DTYPES)}."
        raise QdeqValueError(expected("--input", "a shape such as 1x3x224x224 or 1x128:int64", text, remedy))
    return torch.zeros([int(size) for size in sizes], dtype=getattr(torch, dtype or _DTYPES[0]))
