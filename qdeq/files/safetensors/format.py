"""The safetensors file format, and how qdeq stores quantized weights in it.

A file is 8 bytes, the header's length as little-endian uint64; the header, JSON padded with spaces; then the data.
The header maps each name to ``{"dtype": "F32", "shape": [4, 3], "data_offsets": [begin, end]}``, offsets counted from
the start of the data, and ``"__metadata__"`` to a map of strings (https://github.com/huggingface/safetensors, README).

A quantized weight that keeps its integers is three tensors, for a weight called ``fc.weight``:

* ``fc.weight``: the integers (I8, U8, I32) in the weight's shape; 4- and 2-bit values as U8, one dimension, low bits
  first.
* ``fc.weight_scale``: F64, one number per tensor (shape []) or per channel (shape [channels]).
* ``fc.weight_zero_point``: I64 of the same shape; F32 where the scheme ends in ``float_qparams``.

and an entry in the metadata value ``qdeq.weights``, a JSON text:
``{"fc.weight": {"dtype": "qint8", "qscheme": "per_channel_affine", "axis": 0, "shape": [4, 3]}}``.

The quantization of the output of a module called ``fc`` is two tensors of shape [], ``fc.activation_scale`` (F64) and
``fc.activation_zero_point`` (I64), and a name in the metadata value ``qdeq.activations``, a JSON text: ``{"fc": {}}``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qdeq.errors import QdeqValueError, expected
from qdeq.files.untrusted import is_size, refuse, shown
from qdeq.state_dicts.naming import ACTIVATION_SCALE, ACTIVATION_ZERO_POINT
from qdeq.words import join

__all__ = [
    "ACTIVATIONS_KEY",
    "CODES",
    "DTYPES",
    "INDEX_SUFFIX",
    "MAX_HEADER_BYTES",
    "SCALE_SUFFIX",
    "WEIGHTS_KEY",
    "ZERO_POINT_SUFFIX",
    "Place",
    "activation_names",
    "bytes_for",
    "decode_header",
    "encode_header",
    "load_json",
    "place_of",
]

CODES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float4_e2m1fn_x2: "F4",
    torch.complex64: "C64",
}
DTYPES = {code: dtype for dtype, code in CODES.items()} | {"F6_E2M3": torch.uint8, "F6_E3M2": torch.uint8}
# A shape counts values, also of those that share bytes; a torch tensor of them has bytes in its last dimension.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
INDEX_SUFFIX = ".index.json"
SCALE_SUFFIX, ZERO_POINT_SUFFIX = "_scale", "_zero_point"
WEIGHTS_KEY = "qdeq.weights"
ACTIVATIONS_KEY = "qdeq.activations"

_BROKEN = "The file is damaged or not safetensors: get a fresh copy."
_MAX_DIMS = 64


@dataclass(frozen=True)
class Place:
    """One tensor of a file: ``begin`` and ``end`` are bytes, counted from the start of the data.

    ``code`` is the format's name of the dtype, ``stored_shape`` counts values as the format does.
    """

    name: str
    code: str
    stored_shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the torch tensor; uint8 for values of 6 bits, which torch does not know."""
        return DTYPES[self.code]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the torch tensor: of 4- and 6-bit values that of their bytes, one dimension if rows share bytes."""
        bits = _PACKED_BITS.get(self.code)
        if bits is None:
            return self.stored_shape
        row_bits = (self.stored_shape[-1] if self.stored_shape else 1) * bits
        if row_bits % 8 or not self.stored_shape:
            return (self.end - self.begin,)
        return (*self.stored_shape[:-1], row_bits // 8)


def place_of(name: str, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Place:
    """Return where a torch tensor goes: its header counts values, of which two of 4 bits are one of torch's."""
    stored = (*shape[:-1], 2 * shape[-1]) if dtype == torch.float4_e2m1fn_x2 else shape
    return Place(name, CODES[dtype], stored, begin, begin + bytes_for(CODES[dtype], stored))


def bytes_for(code: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor: values of less than a byte lie without gaps."""
    bits = _PACKED_BITS.get(code, 8 * DTYPES[code].itemsize)
    return (math.prod(shape) * bits + 7) // 8


def activation_names(path: str) -> tuple[str, str]:
    """Names of the tensors for the scale and zero point of the output of the module at ``path``."""
    return join(path, ACTIVATION_SCALE), join(path, ACTIVATION_ZERO_POINT)


def encode_header(places: Iterable[Place], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file, up to its data, which begins at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for place in places:
        offsets = [place.begin, place.end]
        header[place.name] = {"dtype": place.code, "shape": list(place.stored_shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name that occurs twice")
    return result


def load_json(where: str, text: bytes | str) -> dict[str, Any]:
    """Parse JSON that has to be an object without repeated names.

    Raises:
        QdeqValueError: it is not.

    """
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise QdeqValueError(expected(where, "JSON", shown(str(error)), _BROKEN)) from error
    if not isinstance(value, dict):
        refuse(where, "a JSON object", shown(value), _BROKEN)
    return value


def decode_header(where: str, text: bytes, data_bytes: int) -> tuple[list[Place], dict[str, str]]:
    """Read and check a header.

    Args:
        where: the file, for errors.
        text: the JSON.
        data_bytes: how many bytes follow it in the file.

    Returns:
        The tensors in the order of their data, and the metadata.

    Raises:
        QdeqValueError: names the tensor where a dtype, shape or offset is wrong, or bytes belong to two or to none.

    """
    header = load_json(f"{where}: header", text)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(f"{where}: __metadata__", "a map of strings", shown(metadata), _BROKEN)
    places = sorted((_place(where, name, entry) for name, entry in header.items()), key=lambda p: (p.begin, p.end))
    end = 0
    for place in places:
        if place.begin != end:
            refuse(f"{where}: {shown(place.name)}", f"data that begins at byte {end}", str(place.begin), _BROKEN)
        end = place.end
    if end != data_bytes:
        refuse(where, f"{end} bytes of data, as the header says", str(data_bytes), _BROKEN)
    return places, metadata


def _place(where: str, name: str, entry: object) -> Place:
    where = f"{where}: {shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(where, "dtype, shape and data_offsets", shown(entry), _BROKEN)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        refuse(where, f"a dtype of {list(DTYPES)}", shown(code), _BROKEN)
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(map(is_size, shape)):
        refuse(where, "a shape of sizes", shown(shape), _BROKEN)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        refuse(where, "two data_offsets", shown(offsets), _BROKEN)
    size = bytes_for(code, tuple(shape))
    if offsets[1] - offsets[0] != size:
        refuse(where, f"{shown(size)} bytes for {code} of shape {shown(shape)}", shown(offsets), _BROKEN)
    return Place(name, code, tuple(shape), offsets[0], offsets[1])
