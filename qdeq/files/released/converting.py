"""Released checkpoints to dense ones: a folder that grows by whole files, and is taken up again where it was left."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qdeq.errors import QdeqError, QdeqValueError, expected, refuse
from qdeq.files.new_files import NewFiles, naming_errors
from qdeq.files.released.checkpoint import MARKER
from qdeq.files.released.plan import RELEASE_BYTES, WHERE, FolderPlan, ShardPlan, plan_folder
from qdeq.files.safetensors.shards import read_json
from qdeq.files.streaming import Piece, stream
from qdeq.weights.blocks import block_shape, float_block, weight_blocks

__all__ = ["Converted", "check_target", "dequantize_checkpoint", "write_folder"]

_PIECE_BYTES = 4 << 20
Progress = Callable[[str, int], object]


@dataclass(frozen=True)
class Converted:
    """What :func:`dequantize_checkpoint` wrote.

    Attributes:
        files: the files of the new folder, those that an earlier run had finished included.
        tensors: tensors in them.
        dequantized: how many of them were quantized.
        bytes: of all files together.
        dropped: key in the source that has no place in a dense checkpoint -> why.
        left_out: file of the source that was not copied -> why.

    """

    files: tuple[Path, ...]
    tensors: int
    dequantized: int
    bytes: int
    dropped: dict[str, str]
    left_out: dict[str, str]


def dequantize_checkpoint(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    only: Sequence[str] = (),
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Converted:
    """Write a released checkpoint as a dense one: a folder that loads as if it had never been quantized.

    Everything is planned and every scale checked before the first byte is written. Then shard after shard is written
    under its own name, in a few buffers of memory; a file appears when it is complete and on the disk. After a stop,
    whatever its reason, the same call goes on: finished files are not written again. Tensors that are not quantized
    keep their bytes and dtype; the config loses its quantization; other files are copied.

    Args:
        src: folder with ``config.json`` and safetensors files.
        dst: folder to write, in one that is there. It must not exist, unless a run with the same arguments began it.
        dtype: of the dequantized weights: torch.bfloat16, torch.float16 or torch.float32; the float32 value of each,
            rounded once to nearest even.
        only: patterns (``fnmatch``) of the names to take; all if empty.
        dry_run: check everything and write nothing.
        progress: called with the name of a tensor or file and the bytes of it just written, often.

    Raises:
        QdeqValueError: an argument, a checkpoint that cannot be read or contradicts itself, or something else in
            ``dst``.
        QdeqError: ``dst`` cannot be written to, the disk is full, or another process is writing there.

    """
    plan = plan_folder(src, dst, dtype, tuple(only))
    with plan.source:
        check_target(plan)
        if not dry_run:
            write_folder(plan, progress)
        names = [*(shard.name for shard in plan.shards), *plan.others.copied, *plan.texts]
        tensors = [place.name for shard in plan.shards for place in shard.places]
        return Converted(
            tuple(plan.dst / name for name in names),
            len(tensors),
            sum(name in plan.source.weights for name in tensors),
            plan.bytes,
            dict(plan.source.dropped),
            dict(plan.others.left_out),
        )


def check_target(plan: FolderPlan) -> None:
    """Refuse a target that is in the way, or that something else was begun in.

    Raises:
        QdeqValueError, QdeqError: as :func:`dequantize_checkpoint`.

    """
    where, parent = f"{WHERE}: dst", plan.dst.parent
    if not parent.is_dir():
        raise QdeqError(expected(where, "a folder to make it in", f"no folder {parent}", "Make it first."))
    src, dst = plan.src.resolve(), plan.dst.resolve()
    if src == dst or src in dst.parents:
        refuse(where, "a folder outside src", str(plan.dst), "Choose another one: src is never changed.")
    if not os.path.lexists(plan.dst):
        return
    if not plan.dst.is_dir():
        refuse(where, "no file of this name", f"{plan.dst}, which is there", "Choose another name.")
    if (plan.dst / MARKER).is_file():
        if read_json(str(plan.dst / MARKER)).get("plan") != plan.fingerprint:
            got = f"{plan.dst}, begun with another source or other arguments"
            refuse(where, "a folder that the same call began", got, "Finish it with those, or remove it.")
    elif any(plan.dst.iterdir()):
        refuse(where, "an empty folder, or none yet", f"{plan.dst}, which holds files", "Choose another name.")


def write_folder(plan: FolderPlan, progress: Progress | None = None) -> None:
    """Write the files of a plan, or those that are still missing.

    Raises:
        QdeqError: as :func:`dequantize_checkpoint`.

    """
    advance = progress or (lambda name, size: None)
    with naming_errors(plan.dst):
        plan.dst.mkdir(exist_ok=True)
    with _locked(plan.dst):
        _remove_unfinished(plan.dst)
        if not (plan.dst / MARKER).exists():
            _write_bytes(plan.dst / MARKER, json.dumps({"plan": plan.fingerprint}).encode())
        for shard in plan.shards:
            if _is_missing(plan.dst / shard.name, shard.bytes):
                _write_shard(plan, shard, advance)
            else:
                advance(shard.name, shard.bytes)
        for name, size in plan.others.copied.items():
            if _is_missing(plan.dst / name, size):
                _copy(plan, name, size)
            advance(name, size)
        for name, text in plan.texts.items():
            if _is_missing(plan.dst / name, len(text)):
                _write_bytes(plan.dst / name, text)
            advance(name, len(text))
        with naming_errors(plan.dst):
            (plan.dst / MARKER).unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with naming_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with naming_errors(folder):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                got, remedy = "another one that is writing there", "Wait for it, or choose another folder."
                raise QdeqError(expected(str(folder), "no other process in this folder", got, remedy)) from error
        yield
    finally:
        os.close(descriptor)


def _remove_unfinished(folder: Path) -> None:
    """What a process that was killed left behind."""
    pattern = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
    with naming_errors(folder):
        for path in [path for path in folder.rglob(".*.tmp") if pattern.fullmatch(path.name)]:
            path.unlink()


def _is_missing(path: Path, size: int) -> bool:
    if not os.path.lexists(path):
        return True
    if path.stat().st_size != size:
        got, remedy = f"one of {path.stat().st_size} bytes", "Something else changed the folder: remove it."
        raise QdeqValueError(expected(str(path), f"a finished file of {size} bytes", got, remedy))
    return False


def _write_bytes(path: Path, text: bytes) -> None:
    with NewFiles([path], force=False, size=len(text)) as new:
        new.write(path, text, 0)
        new.commit()


def _write_shard(plan: FolderPlan, shard: ShardPlan, advance: Progress) -> None:
    path = plan.dst / shard.name
    with NewFiles([path], force=False, size=shard.bytes) as new:
        new.write(path, shard.header, 0)
        advance(shard.name, len(shard.header))
        pieces = _pieces(plan, shard, new.descriptor(path))
        with new.naming_errors(path):
            stream(pieces, lambda piece: advance(piece.name, piece.size))
        new.commit()


def _pieces(plan: FolderPlan, shard: ShardPlan, file: int) -> Iterator[Piece]:
    unreleased = 0
    for place in shard.places:
        offset = len(shard.header) + place.begin
        if place.name in plan.source.weights:
            yield from _dense_pieces(plan, place.name, file, offset)
        else:
            raw = plan.source.shards.raw(place.name)
            for begin in range(0, raw.numel(), _PIECE_BYTES):
                part = raw[begin : begin + _PIECE_BYTES]
                yield Piece(file, offset + begin, part.numel(), _copier(part), place.name)
        unreleased += place.end - place.begin
        if unreleased >= RELEASE_BYTES:
            plan.source.release()
            unreleased = 0


def _copier(part: Tensor) -> Callable[[Tensor], object]:
    return lambda buffer: buffer.copy_(part)


def _dense_pieces(plan: FolderPlan, name: str, file: int, offset: int) -> Iterator[Piece]:
    weight = plan.source.weight(name)
    for index in weight_blocks(weight):
        shape = block_shape(weight.shape, index)
        size = torch.Size(shape).numel() * plan.dtype.itemsize

        def fill(buffer: Tensor, index: tuple[slice, ...] = index, shape: tuple[int, ...] = shape) -> None:
            out = buffer.view(plan.dtype).view(shape)
            float_block(weight, index, where=name, dtype=plan.dtype, out=out)

        yield Piece(file, offset, size, fill, name)
        offset += size


def _copy(plan: FolderPlan, name: str, size: int) -> None:
    path = plan.dst / name
    with naming_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with NewFiles([path], force=False, size=size) as new, open(plan.src / name, "rb") as file:
        offset = 0
        while chunk := file.read(_PIECE_BYTES):
            new.write(path, chunk, offset)
            offset += len(chunk)
        new.commit()
