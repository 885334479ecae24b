"""Where things lie in a zip archive of torch: its one folder, the pickles and the storages in it."""

from __future__ import annotations

import builtins
import mmap
from typing import Any

from qdeq.errors import QdeqValueError, expected
from qdeq.files.mapped import map_file
from qdeq.files.torch_archive.limits import MAX_PICKLE_BYTES
from qdeq.files.torch_archive.storages import StorageReader, check_byteorder
from qdeq.files.torch_archive.unpickler import read_pickle
from qdeq.files.torch_archive.zipdir import ZipDirectory
from qdeq.files.untrusted import refuse, shown

__all__ = ["map_path", "read_record", "root_of", "storages_in"]


def map_path(path: str) -> mmap.mmap:
    """Map a file that somebody named.

    Raises:
        QdeqValueError: it cannot be read.

    """
    try:
        with builtins.open(path, "rb") as file:
            return map_file(file)
    except (OSError, ValueError) as error:
        raise QdeqValueError(expected(path, "a readable file", shown(str(error)), "Check the path.")) from error


def root_of(path: str, directory: ZipDirectory) -> str:
    """The one folder that everything lies in.

    Raises:
        QdeqValueError: there are several, none holds a ``data.pkl``, or the bytes are in another machine's order.

    """
    roots = {name.split("/", 1)[0] for name in directory.records}
    tops = [name for name in directory.records if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(tops) != 1 or len(roots) != 1:
        got = f"{len(tops)} in {len(roots)} folders"
        refuse(path, "one data.pkl in one folder", got, "Pass a file that torch.save or torch.jit.save wrote.")
    root = tops[0].split("/", 1)[0]
    order = directory.records.get(f"{root}/byteorder")
    if order is not None:
        check_byteorder(f"{path}: byteorder", bytes(directory.view(order, 64)))
    return root


def storages_in(path: str, directory: ZipDirectory, folder: str) -> StorageReader:
    """The storages that lie in a folder, under their keys; ``folder`` ends with a slash."""
    records = directory.records
    return StorageReader(
        path, lambda key: records[folder + key].size, lambda key: directory.view(records[folder + key])
    )


def read_record(path: str, directory: ZipDirectory, name: str) -> Any:
    """What the pickle of that name describes; the record holds it and nothing else."""
    where = f"{path}: {shown(name.split('/', 1)[1])[1:-1]}"
    data = directory.view(directory.records[name], MAX_PICKLE_BYTES)
    top, end = read_pickle(data, where)
    if end != len(data):
        refuse(where, f"a pickle of {len(data)} bytes", f"{end}")
    return top
