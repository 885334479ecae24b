"""``qdeq convert`` of a whole ONNX model: its graph, not its weights alone."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import qdeq
from qdeq.cli.console import console, print_item, rate_text, size_text
from qdeq.errors import QdeqValueError, expected
from qdeq.files.onnx_model.recognise import looks_like_onnx

__all__ = ["convert_onnx"]


def convert_onnx(src: Path, dst: Path, activations: str, selected: bool, force: bool) -> None:
    """Write the float form of the model in ``src`` to ``dst``.

    Args:
        src: an ONNX model.
        dst: the file to write.
        activations: as of :func:`qdeq.dequantize_onnx`.
        selected: whether an option was given that is for single weights.
        force: replace ``dst``.

    """
    if not looks_like_onnx(src):
        remedy = "A graph can only be made from a graph: write the weights to a .safetensors file instead."
        raise QdeqValueError(expected("SRC", "an ONNX model, as DST is", str(src), remedy))
    if selected:
        remedy = (
            "A model is converted whole, as float32; write its weights to a .safetensors file to choose among them."
        )
        what = "no --dtype, --shard-size, --keep, --dry-run, --only, --rename, --prefix or --all for an ONNX model"
        raise QdeqValueError(expected("convert", what, "one of them", remedy))
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
