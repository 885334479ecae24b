"""Safetensors files and sets of shards as a mapping, read by qdeq itself: mapped, checked, nothing loaded."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdeq.errors import QdeqError, QdeqValueError
from qdeq.files.safetensors.format import (
    ACTIVATIONS_KEY,
    INDEX_SUFFIX,
    MAX_HEADER_BYTES,
    SCALE_SUFFIX,
    WEIGHTS_KEY,
    ZERO_POINT_SUFFIX,
    Place,
    activation_names,
    load_json,
)
from qdeq.files.safetensors.shards import MappedFile, Shards
from qdeq.files.untrusted import is_size, refuse, shown
from qdeq.state_dicts.integers import take_scaled, unexplained
from qdeq.state_dicts.parts import Plan, map_tensors
from qdeq.state_dicts.values import value_of
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.blocks import Weight
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name

__all__ = ["SafetensorsFile", "looks_like_safetensors"]


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

    def __init__(self, shards: Shards) -> None:
        """Made by :func:`qdeq.open`."""
        path = shards.path
        self._shards = shards
        self._kept: dict[str, _Kept] = {}
        for file in shards.files:
            for name, text in _metadata(file, WEIGHTS_KEY).items():
                self._kept[name] = _kept_weight(file, name, text)
        outputs = {path: activation_names(path) for file in shards.files for path in _metadata(file, ACTIVATIONS_KEY)}
        self._check_activations(path, outputs)
        inner = {name + suffix for name in self._kept for suffix in (SCALE_SUFFIX, ZERO_POINT_SUFFIX)}
        inner |= {name for names in outputs.values() for name in names}
        plain = {name: place for name, place in shards.places.items() if name not in {*self._kept, *inner}}
        beside = Plan()
        take_scaled(path, beside, plain, lambda place: place.shape if isinstance(place, Place) else None)
        self._scaled = {name: target.value for name, target in beside.targets.items()}
        listed = {*plain, *self._kept, *self._scaled}
        super().__init__(path, {name: None for name in shards.places if name in listed})
        self.dropped, self.integers = beside.dropped, unexplained(plain)
        self.activation_qparams = {
            module: (float(shards.tensor(scale)), int(shards.tensor(zero_point)))
            for module, (scale, zero_point) in outputs.items()
        }

    def _check_activations(self, path: str, outputs: dict[str, tuple[str, str]]) -> None:
        for names in outputs.values():
            places = [self._shards.places[name] for name in names if name in self._shards.places]
            if [(place.dtype, place.shape) for place in places] != [(torch.float64, ()), (torch.int64, ())]:
                what, got = "F64 and I64 of shape []", "others, or none, for what the metadata list"
                refuse(f"{path}: {shown(names[0])} and {shown(names[1])}", what, got)
            if not math.isfinite(scale := float(self._shards.tensor(names[0]))):
                refuse(f"{path}: {shown(names[0])}", "a finite number", shown(scale))

    def __getitem__(self, name: str) -> Weight:
        if name not in self._names:
            raise KeyError(name)
        if name in self._scaled:
            parts = map_tensors(self._scaled[name], lambda place: self._shards.tensor(place.name))
            return value_of(f"{self.path}: {shown(name)}", parts)
        if name not in self._kept:
            return self._shards.tensor(name)
        kept = self._kept[name]
        scale, zero_point = self._shards.tensor(name + SCALE_SUFFIX), self._shards.tensor(name + ZERO_POINT_SUFFIX)
        where = f"{self.path}: {shown(name)}"
        try:
            return QuantizedWeight(
                self._shards.tensor(name), scale, zero_point, kept.axis, kept.qscheme, kept.dtype, kept.shape, where
            )
        except QdeqError as error:
            raise QdeqValueError(f"{where}: {error}") from error

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold tensors, and the index."""
        return self._shards.paths

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self._shards.close()

    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""
        self._shards.release()

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        place = self._shards.places[name]
        size = place.end - place.begin
        kept: Any = self[name] if name in self._scaled else self._kept.get(name)
        if kept is None:
            return Entry(name, place.shape, dtype_name(place.dtype), None, None, None, None, size, name)
        scale = kept.scale if name in self._scaled else self._shards.tensor(name + SCALE_SUFFIX)
        low, high = (float(scale.min()), float(scale.max())) if scale.numel() else (None, None)
        return Entry(name, kept.shape, kept.dtype, kept.qscheme, kept.axis, low, high, size, name)


def looks_like_safetensors(path: str | os.PathLike[str]) -> bool:
    """Whether a file is safetensors: by its name, or a ``{`` where the header begins."""
    name = os.fspath(path)
    if name.endswith((".safetensors", INDEX_SUFFIX)):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES


def _metadata(file: MappedFile, key: str) -> dict[str, Any]:
    return load_json(f"{file.path}: {key}", file.metadata[key]) if key in file.metadata else {}


def _kept_weight(file: MappedFile, name: str, text: object) -> _Kept:
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
