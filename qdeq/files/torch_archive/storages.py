"""The storages of a checkpoint: runs of bytes of one type, checked against the records that hold them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from qdeq.files.torch_archive.pickled import Global, Persistent
from qdeq.files.untrusted import is_size, refuse, shown

__all__ = ["BY_DTYPE", "HOSTILE", "Storage", "StorageReader", "check_byteorder", "element_bytes"]

HOSTILE = "The file is damaged or hostile: get a fresh copy."
# name in a pickle -> (name of the values, plain torch dtype that holds them, bits per value)
_TYPES: dict[str, tuple[str, torch.dtype, int]] = {
    "Double": ("float64", torch.float64, 64),
    "Float": ("float32", torch.float32, 32),
    "Half": ("float16", torch.float16, 16),
    "BFloat16": ("bfloat16", torch.bfloat16, 16),
    "Long": ("int64", torch.int64, 64),
    "Int": ("int32", torch.int32, 32),
    "Short": ("int16", torch.int16, 16),
    "Char": ("int8", torch.int8, 8),
    "Byte": ("uint8", torch.uint8, 8),
    "Bool": ("bool", torch.bool, 8),
    "ComplexFloat": ("complex64", torch.complex64, 64),
    "ComplexDouble": ("complex128", torch.complex128, 128),
    "QInt8": ("qint8", torch.int8, 8),
    "QUInt8": ("quint8", torch.uint8, 8),
    "QInt32": ("qint32", torch.int32, 32),
    "QUInt4x2": ("quint4x2", torch.uint8, 4),
    "QUInt2x4": ("quint2x4", torch.uint8, 2),
    "Untyped": ("bytes", torch.uint8, 8),
}
BY_DTYPE = {entry[0]: entry for entry in _TYPES.values() if entry[0] != "bytes"}
BY_DTYPE |= {"uint16": ("uint16", torch.uint16, 16), "uint32": ("uint32", torch.uint32, 32)}
BY_DTYPE |= {"uint64": ("uint64", torch.uint64, 64)}
BY_DTYPE |= {name: (name, getattr(torch, name), 8) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)}


@dataclass(frozen=True)
class Storage:
    """A run of bytes in the file: ``values`` of ``bits`` bits each, of type ``kind``."""

    key: str
    kind: str
    plain: torch.dtype
    bits: int
    values: int
    size: int  # bytes


def element_bytes(kind: object) -> int | None:
    """Bytes per value of a storage class named in a pickle; None if it is not known."""
    name = kind.name.removesuffix("Storage") if isinstance(kind, Global) else ""
    return max(_TYPES[name][2], 8) // 8 if name in _TYPES else None


class StorageReader:
    """Gives the bytes of storages; one per file form.

    Args:
        path: for errors.
        size_of: storage key -> its size in bytes; raises KeyError where there is none.
        bytes_of: storage key -> its bytes, checked.

    """

    def __init__(self, path: str, size_of: Callable[[str], int], bytes_of: Callable[[str], Any]) -> None:
        """See the class."""
        self.path, self.size_of, self.bytes_of = path, size_of, bytes_of

    def storage(self, where: str, persistent: object) -> Storage:
        """Check what a pickle says of a storage: ``("storage", type, key, device, number of values, ...)``."""
        pid = persistent.pid if isinstance(persistent, Persistent) else None
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            refuse(where, "a storage", shown(type(persistent).__name__), HOSTILE)
        _, kind, key, _, values = pid[:5]
        name = kind.name.removesuffix("Storage") if isinstance(kind, Global) else ""
        key = str(key) if is_size(key) else key  # torch.package counts them
        if name not in _TYPES or not isinstance(key, str) or not is_size(values):
            got = shown((kind, key, values))
            refuse(where, "a storage of a known type", got, HOSTILE)
        type_name, plain, bits = _TYPES[name]
        try:
            size = self.size_of(key)
        except KeyError:
            refuse(where, f"a record for storage {shown(key)}", "none", HOSTILE)
        needed = values * max(bits, 8) // 8  # torch counts a sub-byte storage in bytes
        if needed > size:
            refuse(where, f"a storage of {values} values ({needed} bytes)", f"{size} bytes", HOSTILE)
        return Storage(key, type_name, plain, bits, values, size)


def check_byteorder(where: str, data: bytes) -> None:
    """Refuse a file written on a machine of the other byte order."""
    if data.strip() != sys.byteorder.encode():
        refuse(where, f"byte order {sys.byteorder}", shown(data), "Load and save it again on a machine like this one.")
