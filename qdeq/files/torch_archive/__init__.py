"""Read checkpoints of quantized models without torch's loader: no code of the file runs, no quantized dtype is used.

:func:`open` maps the file, reads its pickle into descriptions (``unpickler``), finds the tensors (``checkpoint``),
names them as the float model would (:mod:`qdeq.state_dicts.naming`), and reads a weight's bytes when it is asked for.
Safetensors files are handed to :mod:`qdeq.files.safetensors.reading`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from qdeq.files.torch_archive.reader import Archive, open_archive
from qdeq.state_dicts.weight_file import Entry

if TYPE_CHECKING:
    from torch import nn

    from qdeq.files.safetensors.reading import SafetensorsFile

__all__ = ["Archive", "Entry", "open", "open_archive"]


def open(path: str | os.PathLike[str], *, like: nn.Module | None = None) -> Archive | SafetensorsFile:
    """Open a file of weights as a mapping from names to :class:`qdeq.QuantizedWeight` or tensors; runs no code of it.

    Args:
        path: what torch saved (``.pt``, ``.pth``: state dicts, nested checkpoints, pickled models, TorchScript), a
            safetensors file, or the index of a set of shards; for the name that a set of shards was saved under, too.
        like: a float model that tells what keys do not: layers and directions of RNNs (one bidirectional layer or two
            forward ones, when input and hidden size are equal), and whether attentions keep three projections.

    Raises:
        QdeqTypeError: ``path`` is no path.
        QdeqValueError: the file cannot be read, is not of a known form, is damaged, or holds no tensor.

    """
    if isinstance(path, str | os.PathLike):
        from qdeq.files.safetensors.reading import looks_like_safetensors, open_safetensors

        if looks_like_safetensors(path):
            return open_safetensors(path)
    return open_archive(path, like=like)
