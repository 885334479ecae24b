"""Values of an ONNX model that lie in other files: found in the model's folder only, mapped, checked."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.files.mapped import map_file
from qdeq.files.untrusted import refuse, shown

__all__ = ["ExternalData", "no_folder"]

_MAX_DIGITS = 18


def no_folder(tensor: Any, size: int) -> Tensor:
    """Refuse values in another file where the folder of the model is not known."""
    remedy = "Pass the path of the model's file instead of the model, or load it with its external data."
    raise QdeqValueError(expected(shown(tensor.name), "values in the model itself", "external data", remedy))


class ExternalData:
    """The files beside one model. Calling it reads the bytes of one tensor: 1-d uint8 that alias the mapped file.

    Args:
        model: path of the model.
        locations: what it says of where its values lie, read or not; nothing is looked up yet.

    """

    def __init__(self, model: Path, locations: Iterable[str] = ()) -> None:
        self.model = model
        self._locations = dict.fromkeys(locations)
        self._maps: dict[str, mmap.mmap] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the values, as far as they may be read."""
        return tuple(path for at in self._locations if (path := self._inside(at)) is not None)

    def __call__(self, tensor: Any, size: int) -> Tensor:
        """Map the ``size`` bytes of a TensorProto.

        Raises:
            QdeqValueError: no such file, one outside of the model's folder, or one that is too short.

        """
        where = f"{self.model}: {shown(tensor.name)}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        offset, length = (_number(where, key, entries.get(key, "0")) for key in ("offset", "length"))
        if "length" in entries and length != size:
            refuse(where, f"{size} bytes of external data", str(length))
        if size == 0:
            return torch.empty(0, dtype=torch.uint8)
        buffer = self._map(where, location)
        if offset + size > len(buffer):
            refuse(where, f"{offset + size} bytes in {shown(location)}", str(len(buffer)))
        return torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=offset)

    def release(self) -> None:
        """Let the system take back the memory of what was read; it is read again when used."""
        for buffer in self._maps.values():
            buffer.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self._maps.clear()

    def _map(self, where: str, location: str) -> mmap.mmap:
        if location not in self._maps:
            path = self._inside(location)
            if path is None:
                remedy = "qdeq reads no file outside of it: get the model from whom you trust, and its data beside it."
                refuse(where, "external data in the model's own folder", shown(location), remedy)
            try:
                # Not to wait where it is a pipe: that is refused below.
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                with open(descriptor, "rb") as file:
                    facts = os.fstat(descriptor)
                    if not stat.S_ISREG(facts.st_mode) or facts.st_size == 0:
                        refuse(where, f"external data in {shown(location)}", "no file, or an empty one")
                    self._maps[location] = map_file(file)
            except OSError as error:
                if isinstance(error, QdeqValueError):
                    raise
                remedy = f"Put the file {shown(location)} beside the model."
                got = f"{shown(location)}: {error.strerror}"
                raise QdeqValueError(expected(where, "a file with external data", got, remedy)) from error
        return self._maps[location]

    def _inside(self, location: str) -> Path | None:
        """Where a file lies; None for one in another folder than the model, also by a link.

        Caches of downloads keep links to files of one folder elsewhere, the model's and its data's: that is allowed.
        """
        folder = self.model.parent
        parts = location.split("/")
        if not location or location.startswith("/") or ".." in parts or "\0" in location or "\\" in location:
            return None
        real = Path(os.path.realpath(folder / location))
        homes = (Path(os.path.realpath(folder)), Path(os.path.realpath(self.model)).parent)
        return folder / location if any(real.is_relative_to(home) for home in homes) else None


def _number(where: str, key: str, text: str) -> int:
    if not text.isdecimal() or not text.isascii() or len(text) > _MAX_DIGITS:
        refuse(f"{where}: {key}", "a number of bytes", shown(text))
    return int(text)
