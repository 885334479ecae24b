"""The tensors of a safetensors file or of a set of shards, as the headers list them: mapped, checked, not loaded."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.files.mapped import map_file
from qdeq.files.safetensors.format import INDEX_SUFFIX, MAX_HEADER_BYTES, Place, decode_header, load_json
from qdeq.files.untrusted import refuse, shown

__all__ = ["MappedFile", "Shards", "map_safetensors", "naming_read_errors", "open_shards", "read_json"]

_MAX_JSON_BYTES = 256 << 20


@dataclass(frozen=True)
class MappedFile:
    """One file: its bytes, where its data begins, what lies there, and its header's metadata."""

    path: str
    buffer: mmap.mmap
    data: int
    places: dict[str, Place]
    metadata: dict[str, str]


class Shards:
    """Files whose tensors have different names.

    Args:
        path: what was opened, for errors.
        files: in the order of their tensors.
        index: the file that lists them; None where there is none.

    Attributes:
        places: name -> tensor, in the order of the files and of the data in each.

    Raises:
        QdeqValueError: two files hold a tensor of one name.

    """

    def __init__(self, path: str, files: list[MappedFile], index: str | None) -> None:
        self.path = path
        self.files = files
        self.index = index
        self.places: dict[str, Place] = {}
        self._owners: dict[str, MappedFile] = {}
        self._is_open = True
        for file in files:
            for name, place in file.places.items():
                if name in self.places:
                    refuse(f"{path}: {shown(name)}", "one tensor of this name", "two shards that hold it")
                self.places[name], self._owners[name] = place, file

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, and the index last."""
        return tuple(Path(file.path) for file in self.files) + ((Path(self.index),) if self.index else ())

    def owner(self, name: str) -> MappedFile:
        """Return the file that holds a tensor."""
        return self._owners[name]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor over the map; a copy only where its values are not aligned.

        Raises:
            QdeqValueError: the files are closed.

        """
        place = self.places[name]
        raw = self.raw(name)
        if raw.numel() == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        if raw.data_ptr() % place.dtype.itemsize:
            raw = raw.clone()
        return raw.view(place.dtype).view(place.shape)

    def raw(self, name: str) -> Tensor:
        """Return the bytes of a tensor as uint8 of one dimension, over the map."""
        if not self._is_open:
            remedy = "Open it again."
            raise QdeqValueError(expected(f"{self.path}: {shown(name)}", "an open file", "a closed one", remedy))
        file, place = self._owners[name], self.places[name]
        if place.begin == place.end:
            return torch.empty(0, dtype=torch.uint8)
        count, offset = place.end - place.begin, file.data + place.begin
        return torch.frombuffer(file.buffer, dtype=torch.uint8, count=count, offset=offset)

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self._is_open = False

    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""
        for file in self.files if self._is_open else ():
            file.buffer.madvise(mmap.MADV_DONTNEED)


def open_shards(path: str | os.PathLike[str]) -> Shards:
    """Open a safetensors file, or the shards that an ``.index.json`` lists.

    Where ``path`` is not there but ``path`` with ``.index.json`` at its end is, that is opened.

    Raises:
        QdeqValueError: a file cannot be read, or its header or the index contradict it.

    """
    name = os.fspath(path)
    if not name.endswith(INDEX_SUFFIX):
        if os.path.exists(name) or not os.path.exists(name + INDEX_SUFFIX):
            return Shards(name, [map_safetensors(name)], None)
        name += INDEX_SUFFIX
    weight_map = read_json(name).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(f"{name}: weight_map", "a map from names to files", shown(weight_map))
    files = [str(shard) if isinstance(shard, str) else "" for shard in weight_map.values()]
    shards = {shard: map_safetensors(_beside(name, shard)) for shard in dict.fromkeys(files)}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].places:
            refuse(f"{name}: {shown(tensor)}", f"it in {shown(shard)}", "no such tensor there")
    for shard, mapped in shards.items():
        if unlisted := mapped.places.keys() - weight_map.keys():
            refuse(f"{name}: {shown(min(unlisted))}", "every tensor in the index", f"none for one of {shown(shard)}")
    return Shards(os.fspath(path), list(shards.values()), name)


def _beside(index: str, shard: str) -> str:
    if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
        refuse(f"{index}: weight_map", "names of files in its own folder", shown(shard))
    return os.path.join(os.path.dirname(index), shard)


def read_json(path: str) -> dict[str, Any]:
    """Read a file that holds a JSON object without repeated names.

    Raises:
        QdeqValueError: it cannot be read, is too large or is something else.

    """
    with naming_read_errors(path), open(path, "rb") as file:
        text = file.read(_MAX_JSON_BYTES + 1)
    if len(text) > _MAX_JSON_BYTES:
        refuse(path, f"a file of at most {_MAX_JSON_BYTES} bytes", "more")
    return load_json(path, text)


@contextlib.contextmanager
def naming_read_errors(path: str) -> Iterator[None]:
    """Turn the system's errors into qdeq's, with the file's name."""
    try:
        yield
    except OSError as error:
        remedy = "Check the path."
        raise QdeqValueError(expected(path, "a readable file", str(error.strerror), remedy)) from error


def map_safetensors(path: str) -> MappedFile:
    """Map one file and read its header."""
    with naming_read_errors(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 10:
            refuse(path, "a safetensors file", f"{size} bytes")
        buffer = map_file(file)
    length = int.from_bytes(buffer[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        refuse(path, f"a header of at most {min(MAX_HEADER_BYTES, size - 8)} bytes", str(length))
    places, metadata = decode_header(path, buffer[8 : 8 + length], size - 8 - length)
    return MappedFile(path, buffer, 8 + length, {place.name: place for place in places}, metadata)
