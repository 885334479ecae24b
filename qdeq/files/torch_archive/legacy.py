"""torch's format before zip archives: five pickles, then every storage's bytes.

``torch/serialization.py``, ``_legacy_load``: magic number, protocol version, system information, the object, the list
of storage keys; then for each key the number of values (int64) and the values. There is no checksum.
"""

from __future__ import annotations

import sys
from typing import Any

from qdeq.files.torch_archive.limits import MAX_NODES
from qdeq.files.torch_archive.pickled import Call, Instance, Persistent
from qdeq.files.torch_archive.storages import element_bytes
from qdeq.files.torch_archive.unpickler import read_pickle
from qdeq.files.untrusted import refuse, shown

__all__ = ["is_legacy", "read_legacy"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


def is_legacy(buffer: Any) -> bool:
    """Whether the file begins with the magic number of the format."""
    return _MAGIC.to_bytes(10, "little") in bytes(buffer[:32])


def read_legacy(path: str, buffer: Any) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return the description of the object, and for each storage key the (start, end) of its bytes.

    Raises:
        QdeqValueError: another version or byte order, or storages that do not fit the file.

    """
    at = 0
    head = []
    for name in ("magic number", "protocol version", "system information", "object", "storage keys"):
        value, at = read_pickle(buffer, f"{path}: {name}", at)
        head.append(value)
    magic, protocol, system, top, keys = head
    if magic != _MAGIC or protocol != _PROTOCOL:
        refuse(path, f"protocol {_PROTOCOL}", shown(protocol), "Save the file again with a newer torch.")
    little = system.get("little_endian") if isinstance(system, dict) else None
    if little is not (sys.byteorder == "little"):
        refuse(path, f"byte order {sys.byteorder}", "the other", "Load and save it again on a machine like this one.")
    if (
        not isinstance(keys, list | tuple)
        or not all(isinstance(key, str) for key in keys)
        or len(set(keys)) != len(keys)
    ):
        refuse(path, "a list of storage keys", shown(type(keys).__name__))
    widths = _element_widths(path, top)
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        where = f"{path}: storage {shown(key)}"
        if key not in widths:
            refuse(where, "a storage that a tensor uses", "one that none does")
        count = int.from_bytes(bytes(buffer[at : at + 8]), "little", signed=True)
        start, end = at + 8, at + 8 + count * widths[key]
        if start > len(buffer) or count < 0 or end > len(buffer):
            refuse(where, f"{count} values inside the file", f"{len(buffer)} bytes in all")
        places[key] = (start, end)
        at = end
    if at != len(buffer):
        refuse(path, f"a file of {at} bytes", f"{len(buffer)}")
    return top, places


def _element_widths(path: str, top: object) -> dict[str, int]:
    """Bytes per value of every storage that the object refers to."""
    widths: dict[str, int] = {}
    seen: set[int] = set()
    todo = [top]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        if isinstance(value, dict | list | tuple | Instance | Persistent):
            seen.add(id(value))
            if len(seen) > MAX_NODES:
                refuse(path, f"at most {MAX_NODES} values", "more", "Save the state_dict() alone.")
        if isinstance(value, Persistent):
            _add_width(path, widths, value.pid)
        elif isinstance(value, dict):
            todo.extend(value.values())
        elif isinstance(value, list | tuple):
            todo.extend(value)
        elif isinstance(value, Call | Instance):
            todo.extend((value.args, value.state, value.items, value.elements))
    return widths


def _add_width(path: str, widths: dict[str, int], pid: object) -> None:
    if isinstance(pid, tuple) and pid and pid[0] == "module":
        return  # the source code of a class, beside it in a whole-model pickle
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[2], str):
        refuse(path, "a storage", shown(type(pid).__name__))
    if len(pid) > 5 and pid[5] is not None:
        refuse(
            f"{path}: storage {shown(pid[2])}",
            "whole storages",
            "a view of one",
            "Save the file again with a newer torch.",
        )
    width = element_bytes(pid[1])
    if width is None or widths.setdefault(pid[2], width) != width:
        refuse(f"{path}: storage {shown(pid[2])}", "one known type", shown(pid[1]))
