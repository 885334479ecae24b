"""The archive as a mapping from the float model's names to weights."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, expected
from qdeq.files.torch_archive.checkpoint import collect
from qdeq.files.torch_archive.contents import Contents
from qdeq.files.torch_archive.legacy import is_legacy, read_legacy
from qdeq.files.torch_archive.packages import is_package, package_contents
from qdeq.files.torch_archive.records import map_path, read_record, root_of, storages_in
from qdeq.files.torch_archive.storages import StorageReader
from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.torch_archive.zipdir import ZipDirectory, is_zip
from qdeq.files.untrusted import refuse, shown
from qdeq.state_dicts.integers import unexplained
from qdeq.state_dicts.lost import doubts
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Fold, Plan, Scaled, Stack, Target, map_tensors, target_shape
from qdeq.state_dicts.records import BESIDE, OPTIMIZER
from qdeq.state_dicts.values import stacked_kind, value_of
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.blocks import Weight
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Archive", "open_archive"]


class Archive(WeightFile):
    """A checkpoint as a mapping: the float model's names to :class:`~qdeq.QuantizedWeight` or plain tensors.

    Reading a weight checks its record's CRC32. :attr:`report` says what became of every key.
    """

    kind = "checkpoint"

    def __init__(
        self, path: str, contents: Contents, like: nn.Module | None, unchecked: Callable[[], list[str]], buffer: Any
    ) -> None:
        """Made by :func:`open_archive`; ``unchecked`` says what could not be checked so far."""
        self._contents, self._unchecked, self._buffer = contents, unchecked, buffer
        self._plan = self._names_for(path, like)
        super().__init__(path, self._plan.targets)
        self.activation_qparams = {
            name: (float(self._number(name, scale)), int(self._number(name, zero)))
            for name, (scale, zero) in self._plan.activations.items()
        }
        self.unread = contents.unread
        self.constants, self.dropped, self.doubtful = self._plan.constants, self._plan.dropped, self._plan.doubtful
        self.integers = unexplained({name: target.value for name, target in self._plan.targets.items()})

    def _names_for(self, path: str, like: nn.Module | None) -> Plan:
        """The file's keys under the names of a float model."""
        contents = self._contents
        plan = plan_names(path, contents.sources, _shape_of, like, contents.rnn_shapes)
        plan.dropped = {**contents.dropped, **contents.unread, **plan.dropped}
        plan.doubtful = doubts(plan, lambda tensor: (tensor.stride, tensor.qscheme), contents.geometries)
        return plan

    def plan_for(self, like: nn.Module | None) -> Plan:
        """Everything in the file by its float name, with the file's own keys as sources."""
        self._check_open("")
        plan = self._plan if like is None else self._names_for(self.path, like)
        targets = {
            name: replace(target, value=map_tensors(target.value, _read_at(self._where(name))))
            for name, target in plan.targets.items()
        }
        return replace(plan, targets=targets, activations=dict(self.activation_qparams))

    def _check_open(self, name: str) -> None:
        if self._buffer is None:
            refuse(self._where(name) if name else self.path, "an open archive", "a closed one", "Open it again.")

    def _number(self, name: str, value: Any) -> float | int:
        if isinstance(value, StoredTensor):
            tensor = value.read(self._where(name))
            if not isinstance(tensor, Tensor) or tensor.numel() != 1 or tensor.is_complex():
                refuse(self._where(name), "one number", shown(value.shape))
            value = tensor.reshape(()).item()
        if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
            refuse(self._where(name), "a finite number", shown(value))
        return value

    def _where(self, name: str) -> str:
        return f"{self.path}: {shown(name)[1:-1]}"

    def __getitem__(self, name: str) -> Weight:
        """Read one weight; KeyError if there is none of that name, QdeqValueError if its bytes are damaged."""
        target = self._plan.targets[name]
        self._check_open(name)
        where = self._where(name)
        return value_of(where, map_tensors(target.value, _read_at(where)))

    def close(self) -> None:
        """Let go of the file; weights that were read stay valid."""
        self._buffer = None

    def release(self) -> None:
        """Let the system take back the memory of what was read; tensors stay valid and are read again when used."""
        if self._buffer is not None:
            self._buffer.madvise(mmap.MADV_DONTNEED)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that this reads: one."""
        return (Path(self.path),)

    @property
    def unchecked(self) -> list[str]:
        """What could not be checked so far, in words: records without CRC32."""
        return self._unchecked()

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        target = self._plan.targets[name]
        value = target.value
        if isinstance(value, Scaled):
            return self._scaled_entry(name, target)
        parts = value.parts if isinstance(value, Stack) else (value.like if isinstance(value, Fold) else value,)
        first = parts[0]
        shape = target_shape(value, _shape_of) or ()
        size = sum(part.nbytes for part in parts)
        dtype, qscheme, axis = first.dtype, first.qscheme, first.axis
        if len(parts) > 1:
            dtype, qscheme, axis = stacked_kind(parts)
        scales = [s for part in parts for s in part.scale_range(self._where(name)) if s is not None]
        low, high = (min(scales), max(scales)) if scales and qscheme is not None else (None, None)
        return Entry(name, shape, dtype, qscheme, axis, low, high, size, target.source, target.note)

    def _scaled_entry(self, name: str, target: Target) -> Entry:
        weight = self[name]  # its integers are mapped, not read
        assert isinstance(weight, QuantizedWeight)
        low, high = (float(weight.scale.min()), float(weight.scale.max())) if weight.scale.numel() else (None, None)
        size = target.value.parts[0].nbytes
        return Entry(name, weight.shape, weight.dtype, weight.qscheme, weight.axis, low, high, size, target.source)


def open_archive(path: str | os.PathLike[str], *, like: nn.Module | None = None, everything: bool = False) -> Archive:
    """Open a checkpoint saved by torch, without running or importing anything it names.

    Reads ``.pt`` and ``.pth`` files of state dicts, nested checkpoints, whole pickled models and TorchScript, in the
    zip format and the one before it, and archives of ``torch.package``. Nothing is read but the pickles until a weight
    is asked for.

    Args:
        path: the file.
        like: a float model that tells what keys do not: layers and directions of RNNs (one bidirectional layer or two
            forward ones, when input and hidden size are equal), and whether attentions keep three projections.
        everything: take tensors of optimizers and other records of a training, too.

    Raises:
        QdeqTypeError: ``path`` is no path.
        QdeqValueError: the file cannot be read, is not of a known form, is damaged, or holds no tensor.

    """
    if not isinstance(path, str | os.PathLike):
        remedy = "Pass a file name; a loaded state dict goes to qdeq.dequantize_state_dict."
        raise QdeqTypeError(expected("qdeq.open: path", "a path", type(path).__name__, remedy))
    name = os.fspath(path)
    buffer, contents = map_path(name), Contents(everything=everything)
    if is_zip(buffer):
        directory = ZipDirectory(name, buffer)
        _zip_contents(name, directory, contents)
        missing = "no CRC32 in the file, damage cannot be seen"
        unchecked: Callable[[], list[str]] = lambda: [f"{shown(n)[1:-1]}: {missing}" for n in directory.unchecked]  # noqa: E731
    elif is_legacy(buffer):
        _legacy_contents(name, buffer, contents)
        unchecked = lambda: ["the format before zip archives has no checksums: damage to values cannot be seen"]  # noqa: E731
    else:
        refuse(
            name,
            "a checkpoint saved by torch",
            f"a file that begins {shown(bytes(buffer[:8]))}",
            "Pass a .pt or .pth file.",
        )
    archive = Archive(name, contents, like, unchecked, buffer)
    if not archive:
        remedy = (
            "qdeq.open reads state dicts, nested checkpoints, pickled models, TorchScript and torch.package archives."
        )
        unread = [f"{shown(key)[1:-1]}: {what}" for key, what in list(contents.unread.items())[:3]]
        got = "; ".join(unread or sorted({OPTIMIZER, BESIDE} & set(archive.dropped.values())))
        refuse(name, "a checkpoint that holds weights", got or "none that could be named", remedy)
    return archive


def _read_at(where: str) -> Callable[[StoredTensor], QuantizedWeight | Tensor]:
    return lambda tensor: tensor.read(where)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, StoredTensor) else None


def _legacy_contents(path: str, buffer: Any, contents: Contents) -> None:
    top, places = read_legacy(path, buffer)
    view = memoryview(buffer)
    reader = StorageReader(
        path, lambda key: places[key][1] - places[key][0], lambda key: view[places[key][0] : places[key][1]]
    )
    collect(path, top, reader, "", contents)


def _zip_contents(path: str, directory: ZipDirectory, contents: Contents) -> None:
    if is_package(directory):
        package_contents(path, directory, contents)
        return
    root = root_of(path, directory)
    constants = f"{root}/constants.pkl"
    if constants in directory.records:
        _pickled(path, directory, constants, f"{root}/constants/", "constants", contents)
    _pickled(path, directory, f"{root}/data.pkl", f"{root}/data/", "", contents)
    directory.check_small()


def _pickled(path: str, directory: ZipDirectory, name: str, folder: str, prefix: str, contents: Contents) -> None:
    top = read_record(path, directory, name)
    collect(path, top, storages_in(path, directory, folder), prefix, contents)
