"""Safetensors files and sets of shards as a mapping, read by qdeq itself: mapped, checked, nothing loaded."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.files.mapped import map_file
from qdeq.files.safetensors.format import (
    ACTIVATIONS_KEY,
    INDEX_SUFFIX,
    MAX_HEADER_BYTES,
    SCALE_SUFFIX,
    WEIGHTS_KEY,
    ZERO_POINT_SUFFIX,
    Place,
    activation_names,
    decode_header,
    load_json,
)
from qdeq.files.untrusted import is_size, refuse, shown
from qdeq.state_dicts.integers import take_scaled, unexplained
from qdeq.state_dicts.parts import Plan, map_tensors
from qdeq.state_dicts.values import value_of
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name

__all__ = ["SafetensorsFile", "looks_like_safetensors", "open_safetensors"]

_MAX_INDEX_BYTES = 256 << 20


@dataclass(frozen=True)
class _Mapped:
    """One file: its bytes, where its data begins and what lies there."""

    path: str
    buffer: mmap.mmap
    data: int
    places: dict[str, Place]
    kept: dict[str, Any]
    activations: dict[str, Any]


@dataclass(frozen=True)
class _Kept:
    """What the metadata say of a weight that kept its integers."""

    dtype: str
    qscheme: str
    axis: int | None
    shape: tuple[int, ...]


class SafetensorsFile(WeightFile):
    """Safetensors files as one mapping. The format has no checksums.

    Weights that :func:`qdeq.save_safetensors` kept as integers come back as :class:`qdeq.QuantizedWeight`, and so do
    integers with scales beside them (:mod:`qdeq.state_dicts.integers`).
    """

    kind = "safetensors"

    def __init__(self, path: str, files: list[_Mapped], index: str | None) -> None:
        """Made by :func:`open_safetensors`."""
        self._files = tuple(Path(file.path) for file in files) + ((Path(index),) if index else ())
        self._parts: list[_Mapped] | None = files
        self._tensors: dict[str, tuple[_Mapped, Place]] = {}
        self._kept: dict[str, _Kept] = {}
        for file in files:
            for name, place in file.places.items():
                if name in self._tensors:
                    refuse(f"{path}: {shown(name)}", "one tensor of this name", "two shards that hold it")
                self._tensors[name] = (file, place)
            for name, text in file.kept.items():
                self._kept[name] = _kept_weight(file, name, text)
        outputs = {path: activation_names(path) for file in files for path in file.activations}
        self._check_activations(path, outputs)
        inner = {name + suffix for name in self._kept for suffix in (SCALE_SUFFIX, ZERO_POINT_SUFFIX)}
        inner |= {name for names in outputs.values() for name in names}
        plain = {name: place for name, (_, place) in self._tensors.items() if name not in {*self._kept, *inner}}
        beside = Plan()
        take_scaled(path, beside, plain, lambda place: place.shape if isinstance(place, Place) else None)
        self._scaled = {name: target.value for name, target in beside.targets.items()}
        listed = {*plain, *self._kept, *self._scaled}
        super().__init__(path, {name: None for name in self._tensors if name in listed})
        self.dropped, self.integers = beside.dropped, unexplained(plain)
        self.activation_qparams = {
            module: (float(self._tensor(scale)), int(self._tensor(zero_point)))
            for module, (scale, zero_point) in outputs.items()
        }

    def _check_activations(self, path: str, outputs: dict[str, tuple[str, str]]) -> None:
        for names in outputs.values():
            places = [self._tensors[name][1] for name in names if name in self._tensors]
            if [(place.dtype, place.shape) for place in places] != [(torch.float64, ()), (torch.int64, ())]:
                what, got = "F64 and I64 of shape []", "others, or none, for what the metadata list"
                refuse(f"{path}: {shown(names[0])} and {shown(names[1])}", what, got)
            if not math.isfinite(scale := float(self._tensor(names[0]))):
                refuse(f"{path}: {shown(names[0])}", "a finite number", shown(scale))

    def __getitem__(self, name: str) -> QuantizedWeight | Tensor:
        if name not in self._names:
            raise KeyError(name)
        if name in self._scaled:
            parts = map_tensors(self._scaled[name], lambda place: self._tensor(place.name))
            return value_of(f"{self.path}: {shown(name)}", parts)
        if name not in self._kept:
            return self._tensor(name)
        kept = self._kept[name]
        scale, zero_point = self._tensor(name + SCALE_SUFFIX), self._tensor(name + ZERO_POINT_SUFFIX)
        where = f"{self.path}: {shown(name)}"
        try:
            return QuantizedWeight(
                self._tensor(name), scale, zero_point, kept.axis, kept.qscheme, kept.dtype, kept.shape, where
            )
        except QdeqError as error:
            raise QdeqValueError(f"{where}: {error}") from error

    def _tensor(self, name: str) -> Tensor:
        if self._parts is None:
            remedy = "Open it again."
            raise QdeqValueError(expected(f"{self.path}: {shown(name)}", "an open file", "a closed one", remedy))
        file, place = self._tensors[name]
        if place.begin == place.end:
            return torch.empty(place.shape, dtype=place.dtype)
        count, offset = (place.end - place.begin) // place.dtype.itemsize, file.data + place.begin
        if offset % place.dtype.itemsize:
            raw = torch.frombuffer(file.buffer, dtype=torch.uint8, count=place.end - place.begin, offset=offset)
            return raw.clone().view(place.dtype).view(place.shape)
        return torch.frombuffer(file.buffer, dtype=place.dtype, count=count, offset=offset).view(place.shape)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, and the index."""
        return self._files

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self._parts = None

    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""
        for file in self._parts or ():
            file.buffer.madvise(mmap.MADV_DONTNEED)

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        _, place = self._tensors[name]
        size = place.end - place.begin
        kept: Any = self[name] if name in self._scaled else self._kept.get(name)
        if kept is None:
            return Entry(name, place.shape, dtype_name(place.dtype), None, None, None, None, size, name)
        scale = kept.scale if name in self._scaled else self._tensor(name + SCALE_SUFFIX)
        low, high = (float(scale.min()), float(scale.max())) if scale.numel() else (None, None)
        return Entry(name, kept.shape, kept.dtype, kept.qscheme, kept.axis, low, high, size, name)


def looks_like_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`open_safetensors` is the one to read a file: by its name, or a ``{`` where the header begins."""
    name = os.fspath(path)
    if name.endswith((".safetensors", INDEX_SUFFIX)):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def open_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a safetensors file, or the shards that an ``.index.json`` lists.

    Where ``path`` is not there but ``path`` with ``.index.json`` at its end is, that is opened.

    Raises:
        QdeqValueError: a file cannot be read, or its header, the index or the kept weights contradict it.

    """
    name = os.fspath(path)
    if not name.endswith(INDEX_SUFFIX):
        if os.path.exists(name) or not os.path.exists(name + INDEX_SUFFIX):
            return SafetensorsFile(name, [_map(name)], None)
        name += INDEX_SUFFIX
    with _naming_errors(name), open(name, "rb") as file:
        text = file.read(_MAX_INDEX_BYTES + 1)
    if len(text) > _MAX_INDEX_BYTES:
        refuse(name, f"an index of at most {_MAX_INDEX_BYTES} bytes", "more")
    weight_map = load_json(name, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        refuse(f"{name}: weight_map", "a map from names to files", shown(weight_map))
    shards = {shard: _map(_beside(name, shard)) for shard in dict.fromkeys(map(_hashable, weight_map.values()))}
    for tensor, shard in weight_map.items():
        if tensor not in shards[shard].places:
            refuse(f"{name}: {shown(tensor)}", f"it in {shown(shard)}", "no such tensor there")
    for shard, mapped in shards.items():
        if unlisted := mapped.places.keys() - weight_map.keys():
            refuse(f"{name}: {shown(min(unlisted))}", "every tensor in the index", f"none for one of {shown(shard)}")
    return SafetensorsFile(os.fspath(path), list(shards.values()), name)


def _hashable(shard: object) -> str:
    return shard if isinstance(shard, str) else ""


def _beside(index: str, shard: str) -> str:
    if shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
        refuse(f"{index}: weight_map", "names of files in its own folder", shown(shard))
    return os.path.join(os.path.dirname(index), shard)


@contextlib.contextmanager
def _naming_errors(path: str) -> Iterator[None]:
    """Turn the system's errors into qdeq's, with the file's name."""
    try:
        yield
    except OSError as error:
        remedy = "Check the path."
        raise QdeqValueError(expected(path, "a readable file", str(error.strerror), remedy)) from error


def _map(path: str) -> _Mapped:
    with _naming_errors(path), open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < 10:
            refuse(path, "a safetensors file", f"{size} bytes")
        buffer = map_file(file)
    length = int.from_bytes(buffer[:8], "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        refuse(path, f"a header of at most {min(MAX_HEADER_BYTES, size - 8)} bytes", str(length))
    places, metadata = decode_header(path, buffer[8 : 8 + length], size - 8 - length)
    kept, activations = (
        load_json(f"{path}: {key}", metadata[key]) if key in metadata else {} for key in (WEIGHTS_KEY, ACTIVATIONS_KEY)
    )
    return _Mapped(path, buffer, 8 + length, {place.name: place for place in places}, kept, activations)


def _kept_weight(file: _Mapped, name: str, text: object) -> _Kept:
    where = f"{file.path}: {shown(name)}"
    if not isinstance(text, dict) or set(text) != {"dtype", "qscheme", "axis", "shape"}:
        refuse(where, "dtype, qscheme, axis and shape", shown(text))
    shape, axis = text["shape"], text["axis"]
    if not isinstance(shape, list) or not all(map(is_size, shape)):
        refuse(where, "a shape of sizes", shown(shape))
    if (
        not isinstance(text["dtype"], str)
        or not isinstance(text["qscheme"], str)
        or type(axis) not in (int, type(None))
    ):
        refuse(where, "names of a dtype and a scheme, and an axis", shown(text))
    for suffix in ("", SCALE_SUFFIX, ZERO_POINT_SUFFIX):
        if name + suffix not in file.places:
            refuse(where, f"a tensor {shown(name + suffix)}", "none in this file")
    return _Kept(text["dtype"], text["qscheme"], axis, tuple(shape))
