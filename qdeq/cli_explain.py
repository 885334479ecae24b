"""``qdeq explain INT8 FLOAT``: why two models disagree."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected

__all__ = ["add_parser"]

DISAGREE = 1
# A tensor this long gets a progress bar.
LONG_DATA = 256


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to ``qdeq``'s; its ``run`` takes the parsed arguments and returns the exit status.

    The status is 0 where the models agree and 1 where they do not; errors are raised as :class:`qdeq.QdeqError`.
    """
    parser = commands.add_parser("explain", help="say why an int8 model and a float model disagree")
    parser.add_argument("int8", type=Path, metavar="INT8", help="checkpoint of the int8 model")
    parser.add_argument("float", type=Path, metavar="FLOAT", help="checkpoint of the float model")
    parser.add_argument("--data", type=Path, help="file with a tensor (n, ...) or a pair (inputs, labels); runs both")
    parser.add_argument("--html", type=Path, help="write a self-contained HTML report")
    parser.add_argument("--json", type=Path, help="write the explanation as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--trust", action="store_true", help="read files that hold a whole model; this runs their code")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain two files; 0 if the models agree, 1 if not."""
    from qdeq.diagnosis.explain import explain

    for path in (arguments.html, arguments.json):
        if path is not None and path.exists() and not arguments.force:
            remedy = "Pass --force to overwrite it, or name another file."
            raise QdeqValueError(expected(str(path), "a file that does not exist yet", "one that does", remedy))
    data = None if arguments.data is None else _with_progress(_load_data(arguments.data))
    explanation = explain(arguments.int8, arguments.float, data, trust=arguments.trust)
    print(explanation)
    if arguments.json is not None:
        explanation.to_json(arguments.json)
    if arguments.html is not None:
        explanation.to_html(arguments.html)
    return 0 if explanation.agrees else DISAGREE


def _load_data(path: Path) -> Any:
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        got = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        remedy = "Save it with torch.save: a tensor, or (inputs, labels)."
        raise QdeqValueError(expected(str(path), "a tensor or a pair of tensors", got, remedy)) from error


def _with_progress(data: Any) -> Any:
    """Long data as batches that move a bar on a terminal's stderr; anything else as it is."""
    inputs, labels = data if isinstance(data, tuple | list) and len(data) == 2 else (data, None)
    if not isinstance(inputs, Tensor) or len(inputs) < LONG_DATA or not sys.stderr.isatty():
        return data
    return _Progress(inputs, labels)


class _Progress(Iterable[Any]):
    def __init__(self, inputs: Tensor, labels: Tensor | None) -> None:
        self.inputs, self.labels = inputs, labels

    def __iter__(self) -> Iterator[Any]:
        total, size = len(self.inputs), 64
        for start in range(0, total, size):
            done = 40 * start // total
            print(f"\r[{'#' * done}{' ' * (40 - done)}] {start} of {total}", end="", file=sys.stderr, flush=True)
            part = slice(start, start + size)
            yield self.inputs[part] if self.labels is None else (self.inputs[part], self.labels[part])
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)
