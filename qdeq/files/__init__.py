"""``open``: files of weights, whatever their format; no code of a file runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from qdeq.files.onnx_model.recognise import looks_like_onnx
from qdeq.files.safetensors.reading import looks_like_safetensors, open_safetensors
from qdeq.files.torch_archive.reader import open_archive
from qdeq.state_dicts.weight_file import WeightFile

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FORMATS", "Format", "open"]

Path = str | os.PathLike[str]


class Format(NamedTuple):
    """A format of files: what begins as it does, and how it is opened with the arguments of :func:`open`."""

    recognise: Callable[[Path], bool]
    open: Callable[[Path, nn.Module | None, bool], WeightFile]


def _open_onnx(path: Path, like: nn.Module | None, everything: bool) -> WeightFile:
    # Needs numpy and the package onnx, which files of other formats do not.
    from qdeq.files.onnx_model.reading import open_onnx

    return open_onnx(path)


FORMATS: list[Format] = [
    Format(looks_like_safetensors, lambda path, like, everything: open_safetensors(path)),
    Format(looks_like_onnx, _open_onnx),
    Format(lambda path: True, lambda path, like, everything: open_archive(path, like=like, everything=everything)),
]
"""The known formats, in the order in which they are asked; the last takes what no other does."""


def open(path: Path, *, like: nn.Module | None = None, everything: bool = False) -> WeightFile:
    """Open a file of weights as a mapping from names to :class:`qdeq.QuantizedWeight` or tensors; runs no code of it.

    Args:
        path: what torch saved (``.pt``, ``.pth``: state dicts, nested checkpoints, pickled models, TorchScript), a
            safetensors file, or the index of a set of shards; for the name that a set of shards was saved under, too;
            or an ONNX model (needs the extra ``[onnx]``).
        like: a float model that tells what keys do not: layers and directions of RNNs (one bidirectional layer or two
            forward ones, when input and hidden size are equal), and whether attentions keep three projections.
        everything: take what a training checkpoint holds beside weights, too: optimizer state, counters, scores.
            Without it these are among :attr:`~WeightFile.dropped`.

    Raises:
        QdeqTypeError: ``path`` is no path.
        QdeqValueError: the file cannot be read, is not of a known form, is damaged, or holds no tensor.

    """
    is_path = isinstance(path, str | os.PathLike)
    known = next((form for form in FORMATS if is_path and form.recognise(path)), FORMATS[-1])
    return known.open(path, like, everything)
