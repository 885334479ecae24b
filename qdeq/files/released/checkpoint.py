"""Released checkpoints as a mapping: a folder with its config and shards, or a safetensors file with scales in it."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from qdeq.files.released.config import read_config
from qdeq.files.released.detect import find_weights, looks_released
from qdeq.files.released.parts import Parts
from qdeq.files.safetensors.format import INDEX_SUFFIX
from qdeq.files.safetensors.reading import SafetensorsFile
from qdeq.files.safetensors.shards import Shards, open_shards
from qdeq.files.untrusted import refuse, shown
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.block_weight import BlockWeight, scale_range
from qdeq.weights.blocks import Weight
from qdeq.weights.codes import unpack_codes
from qdeq.words import dtype_name

__all__ = ["MARKER", "ReleasedFile", "find_tensors", "open_folder", "open_tensors"]

_SUFFIX = ".safetensors"
MARKER = ".qdeq-unfinished"
"""In a folder whose conversion is not finished: what it was begun with."""


class ReleasedFile(WeightFile):
    """A released checkpoint: quantized weights as :class:`~qdeq.BlockWeight`, other tensors as they are.

    Attributes:
        shards: the tensors as they are stored.
        weights: dense name -> the tensors that make a quantized weight.

    """

    kind = "released checkpoint"
    keeps_dtypes = True

    def __init__(self, shards: Shards, folder: Path) -> None:
        """Made by :func:`open_folder` and :func:`open_tensors`."""
        self.shards = shards
        found = find_weights(shards, read_config(folder))
        self.weights, self._notes = found.weights, found.notes
        dense = {parts.codes: name for name, parts in found.weights.items()}
        names = [dense.get(key, key) for key in shards.places if key not in found.dropped]
        super().__init__(shards.path, dict.fromkeys(names))
        self.dropped = found.dropped

    def __getitem__(self, name: str) -> Weight:
        if name not in self._names:
            raise KeyError(name)
        return self.weight(name) if name in self.weights else self.shards.tensor(name)

    def weight(self, name: str) -> BlockWeight:
        """Return one of the quantized weights, over the map."""
        parts, tensor = self.weights[name], self.shards.tensor
        scale = tensor(parts.scale)
        if parts.byte_scales:
            scale = scale.view(torch.float8_e8m0fnu)
        rows = parts.shape[:-1] if parts.shape else ()
        return BlockWeight(
            self.shards.raw(parts.codes).view(*rows, -1) if parts.shape else self.shards.raw(parts.codes).view(()),
            parts.values,
            scale.reshape(parts.grid.shape),
            parts.grid.block,
            parts.shape,
            self._zero(parts),
            None if parts.factor is None else tensor(parts.factor).reshape(()),
            parts.divides,
            origin=f"{self.path}: {shown(name)[1:-1]}",
        )

    def _zero(self, parts: Parts) -> Tensor | None:
        if parts.zero is None:
            return None
        zero = self.shards.tensor(parts.zero)
        if parts.zero_bits:  # packed along the rows of the weight, as its columns are
            columns = zero.t().reshape(-1).view(torch.uint8)
            stored = unpack_codes(columns.view(zero.shape[1], -1), parts.zero_bits, parts.shape[0]).t()
            zero = stored.to(torch.int16) - 2 ** (parts.zero_bits - 1)
        return zero.reshape(parts.grid.shape)

    @property
    def warnings(self) -> list[str]:
        """Where the config says something else than the tensors, which count."""
        return [*super().warnings, *(f"{name}: {text}" for name, text in self._notes.items())]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, and the index."""
        return self.shards.paths

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self.shards.close()

    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""
        self.shards.release()

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        key = self.weights[name].codes if name in self.weights else name
        place = self.shards.places[key]
        size = place.end - place.begin
        if name not in self.weights:
            return Entry(name, place.shape, dtype_name(place.dtype), None, None, None, None, size, name)
        weight = self.weight(name)
        low, high = scale_range(weight.scale)
        note = self._notes.get(name, "")
        return Entry(name, weight.shape, weight.dtype, weight.qscheme, None, low, high, size, key, note)


def find_tensors(folder: Path) -> Path:
    """Return the index of a folder's shards, or its only safetensors file.

    Raises:
        QdeqValueError: there is none, or which one is the model cannot be told.

    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    for preferred in (f"model{_SUFFIX}{INDEX_SUFFIX}", f"model{_SUFFIX}"):
        if preferred in names:
            return folder / preferred
    found = [name for name in names if name.endswith(_SUFFIX + INDEX_SUFFIX)]
    found = found or [name for name in names if name.endswith(_SUFFIX)]
    if len(found) != 1:
        got = ", ".join(map(shown, found[:3])) or f"{len(names)} files, none of them"
        remedy = "Name the one to open: the index of its shards, or the file."
        refuse(os.fspath(folder), "a folder with one index of safetensors shards, or one safetensors file", got, remedy)
    return folder / found[0]


def open_folder(path: str | os.PathLike[str]) -> WeightFile:
    """Open the folder of a checkpoint: quantized as its config says, or dense.

    Raises:
        QdeqValueError: tensors or config cannot be read, contradict each other, or are of a kind that is not read.

    """
    folder = Path(path)
    if (folder / MARKER).exists():
        refuse(f"{folder}", "a whole checkpoint", "a conversion that is not finished", "Run it again: it goes on.")
    return _opened(open_shards(find_tensors(folder)), folder)


def open_tensors(path: str | os.PathLike[str]) -> WeightFile:
    """Open a safetensors file or an index: what qdeq wrote, dense tensors, or a released checkpoint.

    Raises:
        QdeqValueError: as :func:`open_folder`.

    """
    shards = open_shards(path)
    if looks_released(shards.places):
        return ReleasedFile(shards, Path(path).parent)
    return SafetensorsFile(shards)


def _opened(shards: Shards, folder: Path) -> WeightFile:
    if looks_released(shards.places) or read_config(folder).method:
        return ReleasedFile(shards, folder)
    return SafetensorsFile(shards)
