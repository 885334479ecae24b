"""A released checkpoint as dense folder: every file laid out and every scale checked before anything is written."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qdeq.errors import refuse as refuse_argument
from qdeq.files.released.checkpoint import ReleasedFile, open_folder
from qdeq.files.released.config import CONFIG_FILE
from qdeq.files.released.folder import OtherFiles, dense_config, other_files
from qdeq.files.safetensors.format import Place, bytes_for, encode_header, place_of
from qdeq.files.safetensors.shards import MappedFile
from qdeq.files.untrusted import refuse, shown
from qdeq.weights.checks import check_dtype
from qdeq.words import dtype_name

__all__ = ["WHERE", "FolderPlan", "ShardPlan", "plan_folder"]

WHERE = "dequantize_checkpoint"
RELEASE_BYTES = 32 << 20


@dataclass(frozen=True)
class ShardPlan:
    """One file to be: its name, its header, and the tensors in the order of their data."""

    name: str
    header: bytes
    places: tuple[Place, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes behind the header."""
        return self.places[-1].end if self.places else 0

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + self.data_bytes


@dataclass(frozen=True)
class FolderPlan:
    """What will be written.

    Attributes:
        source: the open checkpoint.
        src: its folder.
        dst: the folder to be.
        dtype: of the weights that are dequantized.
        shards: files of tensors, called as in the source; one that held nothing but scales is not there.
        texts: name -> contents of the files that are made, config and index; they come last.
        others: what is copied, and what is not.
        skipped: names that ``only`` leaves out.

    """

    source: ReleasedFile
    src: Path
    dst: Path
    dtype: torch.dtype
    shards: tuple[ShardPlan, ...]
    texts: dict[str, bytes]
    others: OtherFiles
    skipped: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return (
            sum(shard.bytes for shard in self.shards)
            + sum(map(len, self.texts.values()))
            + sum(self.others.copied.values())
        )

    @property
    def fingerprint(self) -> str:
        """What a folder that was begun has to have been begun with: the same source and the same result."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(shard.name.encode() + b"\0" + shard.header)
        for file in self.source.files:
            facts = os.stat(file)
            digest.update(f"{file.name}\0{facts.st_size} {facts.st_mtime_ns}\n".encode())
        for name, text in self.texts.items():
            digest.update(name.encode() + b"\0" + text)
        return digest.hexdigest()


def plan_folder(
    src: str | os.PathLike[str], dst: str | os.PathLike[str], dtype: torch.dtype, only: Sequence[str] = ()
) -> FolderPlan:
    """Open a folder and lay out its dense form. Reads headers, config and scales; the plan's ``source`` stays open.

    Raises:
        QdeqValueError: an argument, or a checkpoint that cannot be read, contradicts itself or is not quantized.

    """
    check_dtype(WHERE, dtype)
    if not os.path.isdir(src):
        remedy = "A single file is converted by qdeq.save_safetensors."
        refuse_argument(f"{WHERE}: src", "the folder of a checkpoint", repr(os.fspath(src)), remedy)
    folder, target = Path(src), Path(dst)
    source = open_folder(folder)
    if not isinstance(source, ReleasedFile):
        source.close()
        remedy = "It is dense already; qdeq convert takes what torch quantized from single files."
        refuse_argument(f"{WHERE}: src", "a released checkpoint with quantized weights", os.fspath(src), remedy)
    try:
        return _plan(source, folder, target, dtype, only)
    except BaseException:
        source.close()
        raise


def _plan(source: ReleasedFile, src: Path, dst: Path, dtype: torch.dtype, only: Sequence[str]) -> FolderPlan:
    taken = _chosen(source, only)
    _check_scales(source, taken)
    planned = [_shard(source, file, taken, dtype) for file in source.shards.files]
    shards = tuple(shard for shard in planned if shard.places)
    texts: dict[str, bytes] = {}
    if source.shards.index is not None:
        texts[Path(source.shards.index).name] = _index(shards)
    config = dense_config(src, dtype_name(dtype))
    if config is not None:
        texts[CONFIG_FILE] = config
    others = other_files(src, {path.name for path in source.files})
    return FolderPlan(
        source, src, dst, dtype, shards, texts, others, tuple(name for name in source if name not in taken)
    )


def _chosen(source: ReleasedFile, only: Sequence[str]) -> set[str]:
    if not only:
        return set(source)
    for pattern in only:
        if not fnmatch.filter(source, pattern):
            remedy = "qdeq inspect lists the names."
            refuse_argument(f"{WHERE}: only", f"patterns of names in {source.path}", repr(pattern), remedy)
    return {name for name in source if any(fnmatch.fnmatchcase(name, pattern) for pattern in only)}


def _check_scales(source: ReleasedFile, taken: Collection[str]) -> None:
    unreleased = 0
    for name in source.weights:
        if name in taken:
            weight = source.weight(name)
            unreleased += weight.float_scale().nbytes
            if unreleased >= RELEASE_BYTES:
                source.release()
                unreleased = 0


def _shard(source: ReleasedFile, file: MappedFile, taken: Collection[str], dtype: torch.dtype) -> ShardPlan:
    file_name = Path(file.path).name
    if not file_name.endswith(".safetensors"):
        refuse(source.path, "shards called *.safetensors", shown(file_name), "Rename it, in the index, too.")
    dense = {parts.codes: name for name, parts in source.weights.items()}
    named = [(dense.get(key, key), place) for key, place in file.places.items()]
    planned = [
        place_of(name, dtype, source.weights[name].shape, 0) if name in source.weights else place
        for name, place in named
        if name in taken
    ]
    places, end = [], 0
    # Wide values first: then every tensor lies at a multiple of its value's size.
    for place in sorted(planned, key=lambda place: -place.dtype.itemsize):
        begin, end = end, end + bytes_for(place.code, place.stored_shape)
        places.append(replace(place, begin=begin, end=end))
    return ShardPlan(file_name, encode_header(places, file.metadata), tuple(places))


def _index(shards: Sequence[ShardPlan]) -> bytes:
    weight_map = {place.name: shard.name for shard in shards for place in shard.places}
    total = sum(shard.data_bytes for shard in shards)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    return text.encode() + b"\n"
