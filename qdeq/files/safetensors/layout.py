"""What a safetensors file, or a set of shards, will hold and where: laid out before any weight is read."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.files.safetensors.format import (
    ACTIVATIONS_KEY,
    CODES,
    INDEX_SUFFIX,
    SCALE_SUFFIX,
    WEIGHTS_KEY,
    ZERO_POINT_SUFFIX,
    Place,
    activation_names,
    encode_header,
    place_of,
)
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.block_weight import BlockWeight
from qdeq.weights.blocks import Weight
from qdeq.weights.dequant import unpack_source
from qdeq.weights.integer_types import FLOAT_QPARAMS, INTEGER_TYPES, PER_TENSOR
from qdeq.weights.native import OUT_DTYPES
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name

__all__ = ["SUFFIX", "Item", "Options", "Plan", "Shard", "Weights", "parse_size", "plan_safetensors"]

Weights = Mapping[str, Weight]

SUFFIX = ".safetensors"
_WHERE = "save_safetensors"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Options:
    """How weights are written; the fields are the arguments of :func:`qdeq.save_safetensors`, checked.

    Raises:
        QdeqValueError: a value that is not among those, or two that contradict each other.

    """

    dtype: torch.dtype = torch.float32
    shard_size: int | str | None = None
    keep: str | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in OUT_DTYPES:
            remedy = "Other dtypes would not hold the values."
            what = f"one of {list(OUT_DTYPES)}"
            raise QdeqValueError(expected(f"{_WHERE}: dtype", what, repr(self.dtype), remedy))
        if self.keep not in (None, "int8"):
            remedy = "Nothing else can be kept."
            raise QdeqValueError(expected(f"{_WHERE}: keep", 'None or "int8"', repr(self.keep), remedy))
        if self.keep and self.dtype != torch.float32:
            remedy = "Kept weights and all other tensors stay as they are: leave dtype out."
            raise QdeqValueError(expected(f"{_WHERE}: dtype", 'float32 with keep="int8"', str(self.dtype), remedy))
        _ = self.limit  # refuses what is no size

    @property
    def limit(self) -> int | None:
        """The most bytes of tensors in a file; None where one file takes all."""
        return None if self.shard_size is None else parse_size(self.shard_size, f"{_WHERE}: shard_size")


_DEFAULTS = Options()


@dataclass(frozen=True)
class Item:
    """One weight on its way: how it was described, and the tensors that it becomes."""

    name: str
    source_dtype: str
    qscheme: str | None
    axis: int | None
    shape: tuple[int, ...]
    stored: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]

    @property
    def kept(self) -> bool:
        """Whether the integers stay integers."""
        return len(self.stored) > 1

    @property
    def bytes(self) -> int:
        """Bytes in the new file."""
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.stored)


@dataclass
class Shard:
    """One file to be: its items, their places and the header."""

    path: Path
    items: list[Item]
    places: dict[str, Place] = field(default_factory=dict)
    header: bytes = b""
    data_bytes: int = 0


@dataclass
class Plan:
    """What will be written where; made without reading a weight."""

    path: Path
    shards: list[Shard]
    index: Path | None
    force: bool
    notes: list[str]
    activations: dict[str, Tensor]  # scales and zero points of outputs, by the names of their tensors

    @property
    def files(self) -> list[Path]:
        """The files to be, the index last."""
        return [shard.path for shard in self.shards] + ([self.index] if self.index else [])

    @property
    def items(self) -> list[Item]:
        """All weights, in the order of writing."""
        return [item for shard in self.shards for item in shard.items]

    @property
    def bytes(self) -> int:
        """Bytes of the files that hold tensors."""
        return sum(len(shard.header) + shard.data_bytes for shard in self.shards)


def plan_safetensors(weights: Weights, path: str | os.PathLike[str], options: Options = _DEFAULTS) -> Plan:
    """Check the arguments of :func:`save_safetensors` and lay out its files, without reading data or writing."""
    if not isinstance(weights, Mapping):
        remedy = "Pass name -> weight, such as qdeq.open(file) or model.state_dict()."
        raise QdeqTypeError(expected(f"{_WHERE}: weights", "a mapping", type(weights).__qualname__, remedy))
    target = Path(path)
    if target.name.endswith(INDEX_SUFFIX) or not target.name:
        remedy = f"Name the safetensors file; the index is called after it, with {INDEX_SUFFIX} at the end."
        raise QdeqValueError(expected(f"{_WHERE}: path", "a file name", f"{os.fspath(path)!r}", remedy))
    items = [_describe(weights, name, options.dtype, bool(options.keep)) for name in weights]
    outputs = weights.activation_qparams if options.keep and isinstance(weights, WeightFile) else {}
    activations = _activations(outputs)
    for name in activations:
        if name in weights:
            remedy = "Rename the weight: what keeps integers gives this name to the quantization of an output."
            raise QdeqValueError(expected(name, "no weight of this name", "one", remedy))
    items += [_describe(activations, name, options.dtype, keep=True) for name in activations]
    _check_names(items)
    shards = _split(target, items, options.limit)
    for shard in shards:
        _lay_out(shard, outputs)
    index = target.with_name(target.name + INDEX_SUFFIX) if len(shards) > 1 else None
    return Plan(target, shards, index, options.force, _notes(items, options.dtype), activations)


def _activations(outputs: Mapping[str, tuple[float, int]]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, (scale, zero_point) in outputs.items():
        scale_name, zero_point_name = activation_names(path)
        tensors[scale_name] = torch.tensor(scale, dtype=torch.float64)
        tensors[zero_point_name] = torch.tensor(zero_point, dtype=torch.int64)
    return tensors


def parse_size(size: int | str, where: str) -> int:
    """Return a number of bytes from an int or a text such as ``500MB``, ``2GB`` or ``1.5GiB``."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(size).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if isinstance(size, bool) or match is None or unit is None or float(match[1]) * unit < 1:
        remedy = "KB, MB and GB are 10**3, 10**6 and 10**9 bytes; KiB, MiB and GiB are 2**10, 2**20 and 2**30."
        raise QdeqValueError(expected(where, "bytes, or a number and KB, MB or GB", repr(size), remedy))
    return int(match[1]) * unit if match[1].isdigit() else int(float(match[1]) * unit)


def _described(weights: Weights, name: str) -> tuple[str, str | None, int | None, tuple[int, ...]]:
    """Dtype, scheme, axis and shape of a weight: from the file's directory where there is one, without its data."""
    if isinstance(weights, WeightFile):
        entry = weights.entry(name)
        return entry.dtype, entry.qscheme, entry.axis, entry.shape
    value = weights[name]
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.device.type == "meta":
            remedy = "Pass dense tensors that hold data."
            raise QdeqTypeError(expected(name, "a dense tensor", f"{value.layout} on {value.device}", remedy))
        if not value.is_quantized:
            return dtype_name(value.dtype), None, None, tuple(value.shape)
        value = unpack_source(value, where=name)
    elif not isinstance(value, QuantizedWeight | BlockWeight):
        remedy = "Leave it out, or unpack it with qdeq.unpack."
        raise QdeqTypeError(expected(name, "a QuantizedWeight or a tensor", type(value).__qualname__, remedy))
    return value.dtype, value.qscheme, value.axis, tuple(value.shape)


def _describe(weights: Weights, name: str, dtype: torch.dtype, keep: bool) -> Item:
    if not isinstance(name, str) or name in ("", "__metadata__"):
        raise QdeqValueError(expected("save_safetensors", "names of tensors", repr(name), "Rename this one."))
    source, qscheme, axis, shape = _described(weights, name)
    if qscheme is None:
        plain = getattr(torch, source, None)
        if plain not in CODES:
            remedy = "The safetensors format has no such dtype: convert the tensor first."
            raise QdeqValueError(expected(name, f"one of {sorted(map(str, CODES))}", source, remedy))
        keeps = keep or (isinstance(weights, WeightFile) and weights.keeps_dtypes)
        stored = plain if keeps or not plain.is_floating_point or plain == torch.float4_e2m1fn_x2 else dtype
        return Item(name, source, None, None, shape, ((name, stored, shape),))
    if not keep:
        return Item(name, source, qscheme, axis, shape, ((name, dtype, shape),))
    kind = INTEGER_TYPES.get(source)
    if kind is None:
        remedy = "Codes with a grid of scales are only written as floats: leave keep out."
        raise QdeqValueError(expected(f"{_WHERE}: keep", f"integers as {name}", source, remedy))
    packed = shape if kind.bits >= 8 else (kind.bytes_for(math.prod(shape)),)
    qparams = () if qscheme == PER_TENSOR else (shape[axis or 0],)
    zero_dtype = torch.float32 if qscheme == FLOAT_QPARAMS else torch.int64
    parts = (
        (name, kind.storage, packed),
        (name + SCALE_SUFFIX, torch.float64, qparams),
        (name + ZERO_POINT_SUFFIX, zero_dtype, qparams),
    )
    return Item(name, source, qscheme, axis, shape, parts)


def _check_names(items: list[Item]) -> None:
    owners: dict[str, str] = {}
    for item in items:
        for name, _, _ in item.stored:
            if name in owners:
                remedy = f"{item.name} and {owners[name]} both need it: rename one of them."
                raise QdeqValueError(expected(name, "one tensor of this name", "two", remedy))
            owners[name] = item.name


def _split(path: Path, items: list[Item], limit: int | None) -> list[Shard]:
    groups: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if limit is not None and groups[-1] and size + item.bytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.bytes
    if len(groups) == 1:
        return [Shard(path, groups[0])]
    stem = path.name.removesuffix(SUFFIX)
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}{SUFFIX}" for number in range(1, len(groups) + 1)]
    return [Shard(path.with_name(name), group) for name, group in zip(names, groups, strict=True)]


def _lay_out(shard: Shard, outputs: Iterable[str]) -> None:
    parts = [part for item in shard.items for part in item.stored]
    # Wide values first: then every tensor lies at a multiple of its value's size.
    for name, dtype, shape in sorted(parts, key=lambda part: -part[1].itemsize):
        shard.places[name] = place_of(name, dtype, shape, shard.data_bytes)
        shard.data_bytes = shard.places[name].end
    metadata = {"format": "pt"}
    kept = {
        item.name: {"dtype": item.source_dtype, "qscheme": item.qscheme, "axis": item.axis, "shape": item.shape}
        for item in shard.items
        if item.kept
    }
    if kept:
        metadata[WEIGHTS_KEY] = json.dumps(kept, separators=(",", ":"))
    listed: dict[str, dict[str, object]] = {path: {} for path in outputs if activation_names(path)[0] in shard.places}
    if listed:
        metadata[ACTIVATIONS_KEY] = json.dumps(listed, separators=(",", ":"))
    shard.header = encode_header(shard.places.values(), metadata)


def _notes(items: list[Item], dtype: torch.dtype) -> list[str]:
    notes = []
    wide = [item.name for item in items if item.source_dtype == "float64" and item.stored[0][1] != torch.float64]
    if wide:
        notes.append(f"{len(wide)} float64 tensors rounded to {dtype_name(dtype)}: {', '.join(wide)}")
    return notes
