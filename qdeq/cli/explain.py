"""``qdeq explain INT8 FLOAT``: why two models disagree."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from qdeq.errors import QdeqValueError, expected
from qdeq.files.new_files import NewFiles

__all__ = ["explain"]

DISAGREE = 1
# A tensor of data this long gets a progress bar, in batches of this size.
LONG_DATA = 256
BATCH = 64

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("int8", type=_FILE)
@click.argument("float_", metavar="FLOAT", type=_FILE)
@click.option("--data", type=_FILE, help="A tensor (n, ...) or a pair (inputs, labels), to run both models on.")
@click.option("--html", type=_FILE, help="Write a self-contained HTML report.")
@click.option("--json", "json_", type=_FILE, help="Write the explanation as JSON.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--trust", is_flag=True, help="Read files that hold a whole model. This runs their code.")
@click.pass_context
def explain(
    ctx: click.Context,
    int8: Path,
    float_: Path,
    data: Path | None,
    html: Path | None,
    json_: Path | None,
    force: bool,
    trust: bool,
) -> None:
    """Say why the model in INT8 and the one in FLOAT disagree.

    Exit status: 0 they agree, 1 they do not, 2 an error.
    """
    from qdeq.diagnosis.explain import explain as explain_models

    for path in (html, json_):
        if path is not None:
            NewFiles([path], force=force, size=0).check()
    batches = None if data is None else _with_progress(_load_data(data))
    explanation = explain_models(int8, float_, batches, trust=trust)
    click.echo(str(explanation))
    if json_ is not None:
        explanation.to_json(json_, force=force)
    if html is not None:
        explanation.to_html(html, force=force)
    if not explanation.agrees:
        ctx.exit(DISAGREE)


def _load_data(path: Path) -> Any:
    import torch

    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        remedy = "Save it with torch.save: a tensor, or (inputs, labels)."
        raise QdeqValueError(expected(str(path), "a tensor or a pair of tensors", got, remedy)) from error


def _with_progress(data: Any) -> Any:
    """Give long data as batches that move a bar on a terminal's stderr; anything else as it is."""
    inputs, labels = data if isinstance(data, tuple | list) and len(data) == 2 else (data, None)
    if not hasattr(inputs, "shape") or len(inputs) < LONG_DATA or not sys.stderr.isatty():
        return data
    return _Progress(inputs, labels)


class _Progress(Iterable[Any]):
    def __init__(self, inputs: Any, labels: Any) -> None:
        self.inputs, self.labels = inputs, labels

    def __iter__(self) -> Iterator[Any]:
        starts = range(0, len(self.inputs), BATCH)
        with click.progressbar(starts, label="running both models", file=sys.stderr) as bar:
            for start in bar:
                part = slice(start, start + BATCH)
                yield self.inputs[part] if self.labels is None else (self.inputs[part], self.labels[part])
