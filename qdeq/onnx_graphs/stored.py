"""Tensors as an ONNX model stores them: sizes checked against the bytes, values read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from qdeq.errors import refuse
from qdeq.onnx_graphs.package import shown
from qdeq.words import shape_text

__all__ = [
    "CODES",
    "DAMAGED",
    "EXTERNAL",
    "FLOATS",
    "INTEGERS",
    "TYPES",
    "External",
    "Stored",
    "Type",
    "stored",
    "unpack_integers",
]

DAMAGED = "The file is damaged: get a fresh copy."
EXTERNAL = 1
"""``TensorProto.EXTERNAL``."""

External = Callable[[Any, int], Tensor]
"""Reads the bytes (1-d uint8, as many as are asked for) of a TensorProto whose values lie in another file."""


class Type(NamedTuple):
    """An element type of ONNX: what it is called, where torch keeps it, and its bits in a file."""

    name: str
    storage: torch.dtype
    bits: int


# Codes of TensorProto.DataType. Sub-byte values lie packed, low bits first.
TYPES = {
    1: Type("float32", torch.float32, 32),
    2: Type("uint8", torch.uint8, 8),
    3: Type("int8", torch.int8, 8),
    4: Type("uint16", torch.uint16, 16),
    5: Type("int16", torch.int16, 16),
    6: Type("int32", torch.int32, 32),
    7: Type("int64", torch.int64, 64),
    9: Type("bool", torch.bool, 8),
    10: Type("float16", torch.float16, 16),
    11: Type("float64", torch.float64, 64),
    12: Type("uint32", torch.uint32, 32),
    13: Type("uint64", torch.uint64, 64),
    16: Type("bfloat16", torch.bfloat16, 16),
    17: Type("float8e4m3fn", torch.float8_e4m3fn, 8),
    18: Type("float8e4m3fnuz", torch.float8_e4m3fnuz, 8),
    19: Type("float8e5m2", torch.float8_e5m2, 8),
    20: Type("float8e5m2fnuz", torch.float8_e5m2fnuz, 8),
    21: Type("uint4", torch.uint8, 4),
    22: Type("int4", torch.uint8, 4),
    25: Type("uint2", torch.uint8, 2),
    26: Type("int2", torch.uint8, 2),
}
CODES = {kind.name: code for code, kind in TYPES.items()}
FLOATS = {code: kind.storage for code, kind in TYPES.items() if kind.name in ("float32", "float16", "bfloat16")}
"""Types that a quantized value can become."""

INTEGERS = {
    **{code: (-(2 ** (TYPES[code].bits - 1)), 2 ** (TYPES[code].bits - 1) - 1) for code in (3, 5, 6, 22, 26)},
    **{code: (0, 2 ** TYPES[code].bits - 1) for code in (2, 4, 21, 25)},
}
"""Integer types of quantized values, with their ranges."""

_FIELDS = {1: "float_data", 11: "double_data", 7: "int64_data", 12: "uint64_data", 13: "uint64_data"}
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a model.

    Attributes:
        name: as the model calls it.
        where: file and name, for errors.
        code: its element type, a key of :data:`TYPES`.
        shape: its shape.
        data: gives its bytes: 1-d uint8, which nobody may write to.

    """

    name: str
    where: str
    code: int
    shape: tuple[int, ...]
    data: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Size of the values."""
        return (math.prod(self.shape) * TYPES[self.code].bits + 7) // 8

    def read(self) -> Tensor:
        """The values in their shape; the packed bytes (1-d uint8) of a sub-byte type."""
        kind, data = TYPES[self.code], self.data()
        if kind.bits < 8:
            return data
        if data.numel() and data.data_ptr() % kind.storage.itemsize:
            data = data.clone()
        return data.view(kind.storage).view(self.shape)

    def integers(self) -> Tensor:
        """Integers of any width, one per element: int8 for those of less than a byte, otherwise int64."""
        values = self.read()
        return unpack_integers(values, self.code, self.shape) if TYPES[self.code].bits < 8 else values.long()


def unpack_integers(packed: Tensor, code: int, shape: tuple[int, ...]) -> Tensor:
    """Sub-byte integers, one per element, as int8; ``packed`` is 1-d uint8, low bits first."""
    bits, (low, high) = TYPES[code].bits, INTEGERS[code]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    values = ((packed[:, None] >> shifts) & (2**bits - 1)).reshape(-1)[: math.prod(shape)].view(torch.int8)
    return (torch.where(values > high, values - 2**bits, values) if low else values).reshape(shape)


def stored(tensor: Any, where: str, external: External) -> Stored:
    """Describe a TensorProto; its values are read by :meth:`Stored.read`.

    Args:
        tensor: the TensorProto.
        where: the file.
        external: reads the bytes of one whose values lie in another file.

    Raises:
        QdeqValueError: a type that is not known, sizes below zero, or other bytes than the shape needs.

    """
    where = f"{where}: {shown(tensor.name)}"
    if tensor.data_type not in TYPES:
        known = ", ".join(kind.name for kind in TYPES.values())
        refuse(where, f"a tensor of {known}", f"element type {tensor.data_type}", "This type is not known.")
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape):
        refuse(where, "sizes of at least 0", str(shape), DAMAGED)
    found = Stored(tensor.name, where, tensor.data_type, shape, lambda: _bytes(tensor, found, external))
    if tensor.data_location == EXTERNAL:
        external(tensor, found.bytes)
    elif tensor.ByteSize() < found.bytes:  # before anybody allocates what it says; reading it looks closer
        got = f"{tensor.ByteSize()} in all"
        refuse(where, f"{found.bytes} bytes for {shape_text(shape)} of {TYPES[found.code].name}", got, DAMAGED)
    return found


def _bytes(tensor: Any, found: Stored, external: External) -> Tensor:
    if tensor.data_location == EXTERNAL:
        return external(tensor, found.bytes)
    if tensor.HasField("raw_data"):
        raw = bytearray(tensor.raw_data)
        data = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    else:
        data = _typed(tensor, found)
    if data.numel() != found.bytes:
        kind = TYPES[found.code].name
        refuse(found.where, f"{found.bytes} bytes for {shape_text(found.shape)} of {kind}", str(data.numel()), DAMAGED)
    return data


def _typed(tensor: Any, found: Stored) -> Tensor:
    """Values in one of the fields of numbers; int32_data holds the bits of every narrow type."""
    numbers = getattr(tensor, _FIELDS.get(found.code, "int32_data"))
    kind = TYPES[found.code]
    if found.code in (1, 11):
        array = np.array(numbers, dtype=np.float32 if found.code == 1 else np.float64)
    elif found.code in (7, 13):
        array = np.array(numbers, dtype=np.int64 if found.code == 7 else np.uint64)
    else:
        array = np.array(numbers, dtype=np.int64).astype(_UNSIGNED[kind.storage.itemsize])
    return torch.from_numpy(array.view(np.uint8)) if array.size else torch.empty(0, dtype=torch.uint8)
