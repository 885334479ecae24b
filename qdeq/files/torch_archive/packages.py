"""Archives of ``torch.package``: pickles under names that the exporter chose, storages in a folder of torch's.

``torch/package/package_exporter.py``: what ``save_pickle(package, resource, obj)`` saves is the record
``<package>/<resource>``; storages are ``.data/<number>.storage``; a script inside an object is
``.data/ts_code/<number>/data.pkl`` with its ``constants.pkl``: the object calls ``unpackage_script_module(number)``.
"""

from __future__ import annotations

import re
from typing import Any

from qdeq.files.torch_archive.checkpoint import collect
from qdeq.files.torch_archive.contents import Contents
from qdeq.files.torch_archive.limits import MAX_PICKLE_BYTES
from qdeq.files.torch_archive.records import read_record
from qdeq.files.torch_archive.storages import StorageReader
from qdeq.files.torch_archive.zipdir import Record, ZipDirectory
from qdeq.files.untrusted import refuse

__all__ = ["is_package", "package_contents"]

_MARK = "/.data/extern_modules"
_SCRIPT = re.compile(r"[^/]+/\.data/ts_code/([^/]+)/(data|constants)\.pkl")


def is_package(directory: ZipDirectory) -> bool:
    """Whether an archive has what the exporter of torch.package always writes."""
    return any(name.count("/") == 2 and name.endswith(_MARK) for name in directory.records)


def package_contents(path: str, directory: ZipDirectory, contents: Contents) -> None:
    """Read every pickle of a package; where there are several, names begin with that of theirs.

    Raises:
        QdeqValueError: a pickle is damaged or calls what no checkpoint calls, or there is none.

    """
    root = next(name for name in directory.records if name.endswith(_MARK)).removesuffix(_MARK)
    storages = f"{root}/.data/"

    def record_of(key: str) -> Record:
        return directory.records[storages + key.removesuffix(".storage") + ".storage"]

    reader = StorageReader(path, lambda key: record_of(key).size, lambda key: directory.view(record_of(key)))
    pickles = [name for name in directory.records if _is_pickle(directory, name, root)]
    if not pickles:
        refuse(path, "a torch.package archive that holds a pickle", "none", "Pass what save_pickle() wrote into.")
    scripts = _scripts(path, directory)
    for name in pickles:
        prefix = name.removeprefix(f"{root}/").removesuffix(".pkl").replace("/", ".") if len(pickles) > 1 else ""
        collect(path, read_record(path, directory, name), reader, prefix, contents, scripts)
    directory.check_small()


def _is_pickle(directory: ZipDirectory, name: str, root: str) -> bool:
    """Whether a record is one: by its bytes, for its name may be any. Sources, texts and other data begin otherwise."""
    record = directory.records[name]
    if name.startswith(f"{root}/.data/") or record.size < 4:
        return False
    if record.size > MAX_PICKLE_BYTES:
        return name.endswith(".pkl")
    data = directory.view(record)
    return data[0] == 0x80 and 2 <= data[1] <= 5 and data[-1:] == b"."


def _scripts(path: str, directory: ZipDirectory) -> dict[str, dict[str, Any]]:
    """Number of a script -> what is in it, by the prefix that names of a script have."""
    found: dict[str, dict[str, Any]] = {}
    for name in directory.records:
        if match := _SCRIPT.fullmatch(name):
            parts = found.setdefault(match[1], {})
            parts["constants" if match[2] == "constants" else ""] = read_record(path, directory, name)
    return found
