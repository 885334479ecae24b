"""``qdeq explain INT8 FLOAT``: why two models disagree."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

import qdeq
from qdeq.cli.console import COUNTS, Advance, progress
from qdeq.cli.status import DIFFERENT, DONE
from qdeq.errors import QdeqValueError, expected
from qdeq.files.new_files import NewFiles
from qdeq.words import error_line

__all__ = ["explain"]

# A tensor of data this long gets a progress bar, in batches of this size.
LONG_DATA = 256
BATCH = 64

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("int8", type=_FILE)
@click.argument("float_", metavar="FLOAT", type=_FILE)
@click.option("--data", type=_FILE, help="Inputs, with labels or without: .pt, .npz, .safetensors.")
@click.option(
    "--sensitivity",
    type=click.Choice(["apart", "together"]),
    is_flag=False,
    flag_value="apart",
    help="With --data: what each layer's quantization costs, weights and activations apart (default) or together.",
)
@click.option("--html", type=_FILE, help="Write a self-contained HTML report.")
@click.option("--json", "json_", type=_FILE, help="Write the explanation as JSON.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--trust", is_flag=True, help="Read files that hold a whole model. This runs their code.")
def explain(
    int8: Path,
    float_: Path,
    data: Path | None,
    sensitivity: str | None,
    html: Path | None,
    json_: Path | None,
    force: bool,
    trust: bool,
) -> int:
    """Say why the model in INT8 and the one in FLOAT disagree.

    Exit status: 0 they agree, 1 they do not, 2 an error.
    """
    for path in (html, json_):
        if path is not None:
            NewFiles([path], force=force, size=0).check()
    batches = None if data is None else _with_progress(_load_data(data))
    with ExitStack() as bars:
        explanation = qdeq.explain(
            int8, float_, batches, sensitivity=sensitivity or False, progress=_measuring(bars), trust=trust
        )
    click.echo(str(explanation))
    if json_ is not None:
        explanation.to_json(json_, force=force)
    if html is not None:
        explanation.to_html(html, force=force)
    return DONE if explanation.agrees else DIFFERENT


def _load_data(path: Path) -> Any:
    """A batch: what torch saved, or the arrays of a file by their names."""
    import torch

    what = "tensors"
    remedy = "Save inputs, (inputs, labels) or a dict of them with torch.save, or arrays as .npz or .safetensors."
    try:
        if path.suffix == ".npz":
            import numpy as np

            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        if path.suffix == ".safetensors":
            with qdeq.open(path) as file:
                return {name: file[name] for name in file}
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise QdeqValueError(expected(str(path), what, error_line(error), remedy)) from error


def _measuring(bars: ExitStack) -> Callable[[str, int, int], None]:
    """A bar that appears once there is something to measure: there is one at a time."""
    shown: list[Advance] = []

    def report(module: str, done: int, total: int) -> None:
        if not shown:
            shown.append(bars.enter_context(progress("measuring layers", total, columns=COUNTS)))
        shown[0](module, 1)

    return report


def _with_progress(data: Any) -> Any:
    """Give long data in batches that move a bar on a terminal's stderr; anything else as it is."""
    inputs, labels = data if isinstance(data, tuple | list) and len(data) == 2 else (data, None)
    if not hasattr(inputs, "shape") or len(inputs) < LONG_DATA or not sys.stderr.isatty():
        return data
    if labels is not None and (not hasattr(labels, "shape") or len(labels) != len(inputs)):
        return data
    return _in_batches(inputs, labels)


def _in_batches(inputs: Any, labels: Any) -> Iterator[Any]:
    with progress("running both models", len(inputs), columns=COUNTS) as advance:
        for start in range(0, len(inputs), BATCH):
            part = slice(start, start + BATCH)
            yield inputs[part] if labels is None else (inputs[part], labels[part])
            advance("samples", len(inputs[part]))
