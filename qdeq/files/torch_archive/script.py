"""TorchScript archives as they lie: the objects of ``data.pkl``, the constants, and the text of the code.

``torch/csrc/jit/serialization``: ``code/`` holds the source of every class, ``data.pkl`` the module and its attributes,
``constants.pkl`` the tensors and packed weights that freezing folded into the code. Nothing is run or imported.
"""

from __future__ import annotations

import os
from typing import Any

from qdeq.files.torch_archive.limits import MAX_SOURCE_BYTES
from qdeq.files.torch_archive.pickled import Call
from qdeq.files.torch_archive.records import map_path, read_record, root_of, storages_in
from qdeq.files.torch_archive.tensors import StoredTensor, tensor_from
from qdeq.files.torch_archive.zipdir import ZipDirectory, is_zip
from qdeq.files.untrusted import DAMAGED, refuse, shown

__all__ = ["Script", "open_script"]

_REMEDY = "Pass what torch.jit.save wrote; qdeq.open reads the weights of other files."


class Script:
    """A TorchScript archive.

    Attributes:
        path: what errors call it.
        top: the module, as :mod:`qdeq.files.torch_archive.pickled` describes it.
        constants: what the code calls ``CONSTANTS.c0``, ``CONSTANTS.c1`` and so on.

    """

    def __init__(self, path: str, buffer: Any) -> None:
        """Read the directory and the pickles of the archive in ``buffer`` (bytes or mmap); see :func:`open_script`."""
        self.path = path
        self._directory = ZipDirectory(path, buffer)
        self._root = root_of(path, self._directory)
        records = self._directory.records
        if not any(name.startswith(f"{self._root}/code/") for name in records):
            refuse(path, "a TorchScript archive", "one without code", _REMEDY)
        self._source_bytes = 0
        self._readers = [
            storages_in(path, self._directory, f"{self._root}/{folder}/") for folder in ("data", "constants")
        ]
        self.top = read_record(path, self._directory, f"{self._root}/data.pkl")
        constants = f"{self._root}/constants.pkl"
        found = read_record(path, self._directory, constants) if constants in records else ()
        if not isinstance(found, tuple | list):
            refuse(f"{path}: constants.pkl", "a tuple of constants", shown(found))
        self.constants = list(found)
        self._directory.check_small()

    def source(self, module: str) -> str | None:
        """The code of a module such as ``__torch__.torch.nn.modules.linear``; None if the archive has none of it.

        Raises:
            QdeqValueError: it is no text, or all code asked for so far is larger than any model needs.

        """
        name = f"code/{module.replace('.', '/')}.py"
        record = self._directory.records.get(f"{self._root}/{name}")
        if record is None:
            return None
        where = f"{self.path}: {shown(name)[1:-1]}"
        self._source_bytes += record.size
        if self._source_bytes > MAX_SOURCE_BYTES:
            remedy = "qdeq.open reads the weights of this file all the same."
            refuse(where, f"at most {MAX_SOURCE_BYTES} bytes of code", "more", remedy)
        try:
            return bytes(self._directory.view(record)).decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(where, "code in UTF-8", shown(str(error)), DAMAGED)

    def tensor(self, where: str, value: object, *, constant: bool) -> StoredTensor | None:
        """The tensor that a description stands for; None where it stands for something else.

        Args:
            where: for errors.
            value: from ``top`` or ``constants``.
            constant: it is from ``constants``.

        Raises:
            QdeqValueError: the tensor does not fit the file.

        """
        return tensor_from(where, value, self._readers[constant]) if isinstance(value, Call) else None


def open_script(source: str | os.PathLike[str] | bytes, name: str = "") -> Script:
    """Open a TorchScript archive; no tensor is read.

    Args:
        source: the file, or the bytes of one.
        name: what errors call it; the file by default.

    Raises:
        QdeqValueError: the file cannot be read, is damaged, or is no TorchScript archive.

    """
    if isinstance(source, bytes):
        return Script(name, source)
    path = os.fspath(source)
    buffer = map_path(path)
    if not is_zip(buffer):
        got = f"a file that begins {shown(bytes(buffer[:8]))}"
        refuse(path, "a TorchScript archive", got, _REMEDY)
    return Script(name or path, buffer)
