"""The archive as a mapping from the float model's names to weights."""

from __future__ import annotations

import builtins
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from qdeq.archive.checkpoint import Contents, collect
from qdeq.archive.legacy import is_legacy, read_legacy
from qdeq.archive.limits import MAX_PICKLE_BYTES, refuse, shown
from qdeq.archive.storages import StorageReader, StoredTensor, check_byteorder
from qdeq.archive.unpickler import read_pickle
from qdeq.archive.zipdir import ZipDirectory, is_zip
from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.naming import Fold, Plan, plan_names, rnn_shapes_of
from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.weight import QuantizedWeight

__all__ = ["Archive", "Entry", "open_archive"]


@dataclass(frozen=True)
class Entry:
    """One weight of an archive, known without reading it.

    Attributes:
        name: the float model's name.
        shape: its shape.
        dtype: torch's name of the stored values: ``qint8``, ``float32``, ...
        qscheme: torch's name of the scheme; None for a plain tensor.
        axis: channel axis; None for a plain tensor or a per tensor scheme.
        scale_min: smallest scale; None for a plain tensor.
        scale_max: largest scale; None for a plain tensor.
        bytes: size of the values in the file.
        source: the key in the checkpoint.

    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    qscheme: str | None
    axis: int | None
    scale_min: float | None
    scale_max: float | None
    bytes: int
    source: str


class Archive(Mapping[str, QuantizedWeight | Tensor]):
    """A checkpoint as a mapping: the float model's names to :class:`~qdeq.QuantizedWeight` or plain tensors.

    Reading a weight checks its record's CRC32 and maps its bytes; tensors keep the map alive, also after
    :meth:`close`. They are private copies where they are written to: the file never changes.

    Attributes:
        path: the file.
        activation_qparams: module path -> (scale, zero point) of its quantized output.
        report: what became of every key; :attr:`Report.notes` under ``""`` holds the warnings.

    """

    def __init__(
        self, path: str, plan: Plan, contents: Contents, unchecked: Callable[[], list[str]], buffer: Any
    ) -> None:
        """Made by :func:`open_archive`."""
        self.path = path
        self._plan, self._contents, self._unchecked, self._buffer = plan, contents, unchecked, buffer
        self._warnings: list[str] = []
        self.activation_qparams = {
            name: (float(self._number(name, scale)), int(self._number(name, zero)))
            for name, (scale, zero) in plan.activations.items()
        }

    def _number(self, name: str, value: Any) -> float | int:
        if isinstance(value, StoredTensor):
            tensor = value.read(self._where(name))
            if not isinstance(tensor, Tensor) or tensor.numel() != 1 or tensor.is_complex():
                refuse(self._where(name), "one number", shown(value.shape), "The file is damaged: get a fresh copy.")
            value = tensor.reshape(()).item()
        if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
            refuse(self._where(name), "a finite number", shown(value), "The file is damaged: get a fresh copy.")
        return value

    def _where(self, name: str) -> str:
        return f"{self.path}: {shown(name)[1:-1]}"

    def __getitem__(self, name: str) -> QuantizedWeight | Tensor:
        """Read one weight; KeyError if there is none of that name, QdeqValueError if its bytes are damaged."""
        target = self._plan.targets[name]
        if self._buffer is None:
            refuse(self._where(name), "an open archive", "a closed one", "Open it again.")
        if isinstance(target.value, Fold):
            return self._fold(name, target.value)
        value: QuantizedWeight | Tensor = target.value.read(self._where(name))
        return value

    def _fold(self, name: str, fold: Fold) -> Tensor:
        from qdeq.folding import fold_batch_norm

        parts = [None if part is None else part.read(self._where(name)) for part in fold.parts]
        return fold_batch_norm(self._where(name), fold.part, *parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._plan.targets)

    def __len__(self) -> int:
        return len(self._plan.targets)

    def __contains__(self, name: object) -> bool:
        return name in self._plan.targets

    def __repr__(self) -> str:
        return f"<qdeq.Archive {self.path!r}: {len(self)} weights>"

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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
    def warnings(self) -> list[str]:
        """What could not be checked so far, in words: records without CRC32, shapes that torch saves wrongly."""
        missing = [f"{shown(name)[1:-1]}: no CRC32 in the file, damage cannot be seen" for name in self._unchecked()]
        return [*self._warnings, *(f"{path}: {text}" for path, text in self._contents.notes.items()), *missing]

    def source_of(self, name: str) -> str:
        """The checkpoint's key behind a name."""
        return self._plan.targets[name].source

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        target = self._plan.targets[name]
        tensor = (
            target.value.parts[0 if target.value.part == "weight" else 2]
            if isinstance(target.value, Fold)
            else target.value
        )
        low, high = tensor.scale_range(self._where(name))
        return Entry(
            name, tensor.shape, tensor.dtype, tensor.qscheme, tensor.axis, low, high, tensor.nbytes, target.source
        )

    def describe(self) -> list[Entry]:
        """Describe every weight, in the file's order, without reading values."""
        return [self.entry(name) for name in self]

    @property
    def report(self) -> Report:
        """The account of the file: every name's source, what was dropped and why, and the warnings."""
        report = Report(activation_qparams=dict(self.activation_qparams))
        for entry in self.describe():
            report.entries.append(
                ReportEntry(
                    entry.name,
                    entry.source,
                    "checkpoint",
                    "Tensor",
                    entry.shape,
                    entry.dtype,
                    entry.qscheme,
                    entry.scale_min,
                    entry.scale_max,
                    note=self._plan.targets[entry.name].note,
                )
            )
        for source, reason in {**self._contents.dropped, **self._plan.dropped}.items():
            report.dropped.append(DroppedSource(source, reason))
        for text in self.warnings:
            report.note("", text)
        return report


def open_archive(path: str | os.PathLike[str], *, like: nn.Module | None = None) -> Archive:
    """Open a checkpoint saved by torch, without running or importing anything it names.

    Reads ``.pt`` and ``.pth`` files of state dicts, nested checkpoints, whole pickled models and TorchScript, in the
    zip format and the one before it. Nothing is read but the pickle until a weight is asked for.

    Args:
        path: the file.
        like: a float model that tells layers and directions of RNNs where the keys do not (one bidirectional layer or
            two forward ones, when input and hidden size are equal).

    Raises:
        QdeqTypeError: ``path`` is no path.
        QdeqValueError: the file cannot be read, is not of a known form, is damaged, or holds no tensor.

    """
    if not isinstance(path, str | os.PathLike):
        remedy = "Pass a file name; a loaded state dict goes to qdeq.dequantize_state_dict."
        raise QdeqTypeError(expected("qdeq.open: path", "a path", type(path).__name__, remedy))
    name = os.fspath(path)
    buffer = _map(name)
    if is_zip(buffer):
        directory = ZipDirectory(name, buffer)
        contents = _zip_contents(name, directory)
        unchecked: Callable[[], list[str]] = lambda: directory.unchecked  # noqa: E731
        warnings = []
    elif is_legacy(buffer):
        contents = _legacy_contents(name, buffer)
        unchecked = list
        warnings = ["the format before zip archives has no checksums: damage to values cannot be seen"]
    else:
        refuse(
            name,
            "a checkpoint saved by torch",
            f"a file that begins {shown(bytes(buffer[:8]))}",
            "Pass a .pt or .pth file.",
        )
    plan = plan_names(name, contents.sources, _shape_of, {**contents.rnn_shapes, **rnn_shapes_of(like)})
    if not plan.targets:
        remedy = "qdeq.open reads state dicts, nested checkpoints, pickled models and TorchScript."
        refuse(name, "a checkpoint that holds tensors", "none that could be named", remedy)
    archive = Archive(name, plan, contents, unchecked, buffer)
    archive._warnings.extend(warnings)
    return archive


def _map(path: str) -> mmap.mmap:
    try:
        with builtins.open(path, "rb") as file:
            # copy on write: tensors over the map are writable, the file is not written
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise QdeqValueError(expected(path, "a readable file", shown(str(error)), "Check the path.")) from error


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return value.shape if isinstance(value, StoredTensor) else None


def _legacy_contents(path: str, buffer: Any) -> Contents:
    top, places = read_legacy(path, buffer)
    view = memoryview(buffer)
    reader = StorageReader(
        path, lambda key: places[key][1] - places[key][0], lambda key: view[places[key][0] : places[key][1]]
    )
    return collect(path, top, reader)


def _zip_contents(path: str, directory: ZipDirectory) -> Contents:
    roots = {name.split("/", 1)[0] for name in directory.records}
    tops = [name for name in directory.records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1 or len(roots) != 1:
        got = f"{len(tops)} in {len(roots)} folders"
        refuse(path, "one data.pkl in one folder", got, "Pass a file that torch.save or torch.jit.save wrote.")
    root = tops[0].split("/", 1)[0]
    order = directory.records.get(f"{root}/byteorder")
    if order is not None:
        check_byteorder(f"{path}: byteorder", bytes(directory.view(order, 64)))
    contents = Contents()
    constants = f"{root}/constants.pkl"
    if constants in directory.records:
        _pickled(path, directory, constants, f"{root}/constants/", "constants", contents)
    data = "data/"
    _pickled(path, directory, tops[0], f"{root}/{data}", "", contents)
    directory.check_small()
    return contents


def _pickled(path: str, directory: ZipDirectory, name: str, folder: str, prefix: str, contents: Contents) -> None:
    def size_of(key: str) -> int:
        return directory.records[folder + key].size

    def bytes_of(key: str) -> Any:
        return directory.view(directory.records[folder + key])

    where = f"{path}: {shown(name.split('/', 1)[1])[1:-1]}"
    data = directory.view(directory.records[name], MAX_PICKLE_BYTES)
    top, end = read_pickle(data, where)
    if end != len(data):
        refuse(where, f"a pickle of {len(data)} bytes", f"{end}", "The file is damaged: get a fresh copy.")
    collect(path, top, StorageReader(path, size_of, bytes_of), prefix, contents)
