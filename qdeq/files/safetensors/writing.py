"""Weights to safetensors files: streamed, complete or not there, and never over a file without being told to."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.files.new_files import NewFiles
from qdeq.files.safetensors.format import INDEX_SUFFIX, SCALE_SUFFIX
from qdeq.files.safetensors.layout import SUFFIX, Item, Options, Plan, Weights, plan_safetensors
from qdeq.files.streaming import Piece, stream
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.blocks import Index, block_shape, float_block, weight_blocks
from qdeq.weights.dequant import unpack_source
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Saved", "check_plan", "save_safetensors", "touched_files", "write_plan"]

RELEASE_BYTES = 32 << 20


@dataclass(frozen=True)
class Saved:
    """What :func:`save_safetensors` wrote.

    Attributes:
        files: the files, the index last.
        tensors: weights and tensors that were asked for; a kept weight counts once.
        bytes: of all files together.
        notes: choices that were made, in words.

    """

    files: tuple[Path, ...]
    tensors: int
    bytes: int
    notes: tuple[str, ...] = ()


def save_safetensors(
    weights: Weights,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    shard_size: int | str | None = None,
    keep: str | None = None,
    force: bool = False,
) -> Saved:
    """Write weights as safetensors, one at a time: memory stays at a few blocks of 8 MB, whatever their size.

    The file appears under its name when it is complete and on the disk; before that it has a temporary name beside it,
    and after an error or an interrupt nothing is left.

    Args:
        weights: name -> quantized weight or tensor, such as :func:`qdeq.open` gives. Quantized weights are
            dequantized; floating tensors become ``dtype``; integer and boolean tensors stay as they are.
        path: the file to write. With ``shard_size``, ``model.safetensors`` stands for
            ``model-00001-of-00002.safetensors``, ... and ``model.safetensors.index.json`` in the same folder.
        dtype: torch.float32, torch.bfloat16 or torch.float16, rounded to nearest even.
        shard_size: the most bytes of tensors in a file, or a text such as "2GB" (10**9 bytes each; "2GiB" for 2**30);
            a larger tensor gets a file of its own. If one file is enough, there is no index.
        keep: "int8" keeps the integers of quantized weights, of any width, with scales and zero points as tensors of
            their own (names: :mod:`qdeq.files.safetensors.format`) and every other tensor as it is; of an opened file
            those of activations, too. :func:`qdeq.open` reads the same back.
        force: replace files that are there, and remove those of an earlier set of shards at ``path``.

    Returns:
        The files, and how many tensors and bytes they hold.

    Raises:
        QdeqTypeError: a weight that is neither a quantized weight nor a tensor.
        QdeqValueError: an argument, a dtype that safetensors lacks, bad scales, two weights of one name, or a file in
            the way.
        QdeqError: the folder cannot be written to, or the disk is full.

    """
    return write_plan(plan_safetensors(weights, path, Options(dtype, shard_size, keep, force)), weights)


def write_plan(plan: Plan, weights: Weights, progress: Callable[[str, int], object] | None = None) -> Saved:
    """Write the files of a plan.

    Args:
        plan: from :func:`plan_safetensors`, for the same weights.
        weights: what to write.
        progress: called with the name of a weight and the bytes of it just written, often.

    Raises:
        QdeqError: as :func:`save_safetensors`.

    """
    with _new_files(plan) as new:
        bases = []
        for shard in plan.shards:
            new.write(shard.path, shard.header, 0)
            bases.append((new.descriptor(shard.path), len(shard.header)))
        pieces = _pieces(plan, weights, bases)
        with new.naming_errors():
            stream(pieces, lambda piece: progress(piece.name, piece.size) if progress else None)
        if plan.index is not None:
            new.write(plan.index, _index_text(plan), 0)
        written = new.commit()
    return Saved(tuple(plan.files), len(plan.items) - len(plan.activations), written, tuple(plan.notes))


def _index_text(plan: Plan) -> bytes:
    weight_map = {name: shard.path.name for shard in plan.shards for name in shard.places}
    total = sum(shard.data_bytes for shard in plan.shards)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode() + b"\n"


def _earlier_set(plan: Plan) -> list[Path]:
    """Files at the target that a reader would take for part of the new set, or instead of it."""
    stem = plan.path.name.removesuffix(SUFFIX)
    pattern = re.compile(re.escape(stem) + r"-\d{5}-of-\d{5}" + re.escape(SUFFIX))
    folder = plan.path.parent
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    stale = [folder / name for name in names if pattern.fullmatch(name)]
    stale += [plan.path, plan.path.with_name(plan.path.name + INDEX_SUFFIX)]
    return [path for path in stale if os.path.lexists(path) and path not in plan.files]


def _pieces(plan: Plan, weights: Weights, bases: list[tuple[int, int]]) -> Iterator[Piece]:
    since_release = 0
    for shard, (file, header_bytes) in zip(plan.shards, bases, strict=True):
        for item in shard.items:
            value = _fetch(plan.activations if item.name in plan.activations else weights, item)
            for name, dtype, _ in item.stored:
                place = shard.places[name]
                yield from _tensor_pieces(item, _part(item, value, name), dtype, file, header_bytes + place.begin)
            since_release += item.bytes
            if isinstance(weights, WeightFile) and since_release >= RELEASE_BYTES:
                weights.release()
                since_release = 0


def _fetch(weights: Weights, item: Item) -> QuantizedWeight | Tensor:
    """Read a weight; it has to be what the plan was made for."""
    value = weights[item.name]
    if isinstance(value, Tensor) and value.is_quantized:
        value = unpack_source(value, where=item.name)
    qscheme = value.qscheme if isinstance(value, QuantizedWeight) else None
    if tuple(value.shape) != item.shape or qscheme != item.qscheme:
        what = f"{item.qscheme or 'a tensor'} of shape {item.shape}, as planned"
        remedy = "The weights changed while they were being written: try again."
        raise QdeqValueError(
            expected(item.name, what, f"{qscheme or 'a tensor'} of shape {tuple(value.shape)}", remedy)
        )
    return value


def _part(item: Item, value: QuantizedWeight | Tensor, name: str) -> QuantizedWeight | Tensor:
    if not item.kept or isinstance(value, Tensor):
        return value
    if name == item.name:
        return value.int_repr
    return value.scale if name.endswith(SCALE_SUFFIX) else value.zero_point


def _tensor_pieces(
    item: Item, value: QuantizedWeight | Tensor, dtype: torch.dtype, file: int, offset: int
) -> Iterator[Piece]:
    for index in weight_blocks(value):
        shape = block_shape(tuple(value.shape), index)
        size = math.prod(shape) * dtype.itemsize

        def fill(buffer: Tensor, index: Index = index, shape: tuple[int, ...] = shape) -> None:
            float_block(value, index, where=item.name, dtype=dtype, out=buffer.view(dtype).view(shape))

        yield Piece(file, offset, size, fill, item.name)
        offset += size


def check_plan(plan: Plan) -> None:
    """Refuse a plan that :func:`write_plan` would refuse at its beginning: files in the way, no folder, no room."""
    _new_files(plan).check()


def touched_files(plan: Plan) -> list[Path]:
    """Return every file that :func:`write_plan` writes, replaces or removes, as far as they are there."""
    return [path for path in (*plan.files, *_earlier_set(plan)) if path.exists()]


def _new_files(plan: Plan) -> NewFiles:
    return NewFiles(plan.files, force=plan.force, size=plan.bytes, replaced=_earlier_set(plan))
