"""Tensors as a checkpoint describes them, checked against the bytes they claim, and read when they are wanted."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeq.archive.limits import refuse, shown
from qdeq.archive.unpickler import Call, Global, Persistent
from qdeq.errors import QdeqError
from qdeq.weight import QuantizedWeight

__all__ = ["Storage", "StorageReader", "StoredTensor", "check_byteorder", "element_bytes", "tensor_from"]

_DAMAGED = "The file is damaged or hostile: get a fresh copy."
_MAX_DIMS = 64
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
_BY_DTYPE = {entry[0]: entry for entry in _TYPES.values() if entry[0] != "bytes"}
_BY_DTYPE |= {"uint16": ("uint16", torch.uint16, 16), "uint32": ("uint32", torch.uint32, 32)}
_BY_DTYPE |= {"uint64": ("uint64", torch.uint64, 64)}
_BY_DTYPE |= {
    name: (name, getattr(torch, name), 8) for name in ("float8_e4m3fn", "float8_e5m2") if hasattr(torch, name)
}
_SUB_BYTE = 8


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
            refuse(where, "a storage", shown(type(persistent).__name__), _DAMAGED)
        _, kind, key, _, values = pid[:5]
        name = kind.name.removesuffix("Storage") if isinstance(kind, Global) else ""
        if name not in _TYPES or not isinstance(key, str) or not _is_size(values):
            got = shown((str(kind), key, values) if isinstance(key, str | int) else str(kind))
            refuse(where, "a storage of a known type", got, _DAMAGED)
        type_name, plain, bits = _TYPES[name]
        try:
            size = self.size_of(key)
        except KeyError:
            refuse(where, f"a record for storage {shown(key)}", "none", _DAMAGED)
        needed = values * max(bits, 8) // 8  # torch counts a sub-byte storage in bytes
        if needed > size:
            refuse(where, f"a storage of {values} values ({needed} bytes)", f"{size} bytes", _DAMAGED)
        return Storage(key, type_name, plain, bits, values, size)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that lies in the file: checked, not read.

    Attributes:
        storage: where its bytes are.
        offset: of the first value, counted in values.
        shape: sizes.
        stride: strides, counted in values.
        dtype: torch's name of the values, such as ``float32`` or ``qint8``.
        qscheme: torch's name of the scheme; None for a plain tensor.
        axis: channel axis of a per channel scheme.
        scale: a number, or the tensor of scales.
        zero_point: a number, or the tensor of zero points.

    """

    reader: StorageReader
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    plain: torch.dtype
    bits: int
    qscheme: str | None = None
    axis: int | None = None
    scale: float | StoredTensor | None = None
    zero_point: int | StoredTensor | None = None

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the values themselves."""
        return (self.numel * self.bits + 7) // 8

    def scale_range(self, where: str) -> tuple[float | None, float | None]:
        """Smallest and largest scale; None where there is none."""
        if isinstance(self.scale, StoredTensor):
            scales = self.scale._plain(where)
            return (float(scales.min()), float(scales.max())) if scales.numel() else (None, None)
        return self.scale, self.scale

    def _plain(self, where: str) -> Tensor:
        """The values as a plain tensor over the mapped file; sub-byte types as 1-D packed bytes."""
        data = self.reader.bytes_of(self.storage.key)
        shape, stride = (self.shape, self.stride) if self.bits >= _SUB_BYTE else ((self.nbytes,), (1,))
        if self.numel == 0:
            return torch.empty(shape, dtype=self.plain)
        width = max(self.bits, 8) // 8
        begin = self.offset * width
        last = sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        piece = memoryview(data)[begin : begin + (last + 1) * width]
        if len(piece) != (last + 1) * width:  # the file shrank since it was opened
            refuse(where, f"{(last + 1) * width} bytes", f"{len(piece)}", _DAMAGED)
        flat = _tensor_over(piece, self.plain)
        # a dimension of one value may have any stride in the file, 0 too, which confuses users of the tensor
        return flat.as_strided(shape, [s if n > 1 else 1 for n, s in zip(shape, stride, strict=True)])

    def read(self, where: str) -> Tensor | QuantizedWeight:
        """Read the values.

        Args:
            where: file and key, for errors.

        Raises:
            QdeqValueError: a wrong CRC32, or scales and zero points that do not fit.

        """
        values = self._plain(where)
        if self.qscheme is None:
            return values
        if isinstance(self.scale, StoredTensor) and isinstance(self.zero_point, StoredTensor):
            floats = self.qscheme.endswith("float_qparams")
            scale = self.scale._plain(where).to(torch.float64).contiguous()
            zero_point = self.zero_point._plain(where).to(torch.float32 if floats else torch.int64).contiguous()
        else:
            scale = torch.tensor(self.scale, dtype=torch.float64)
            zero_point = torch.tensor(self.zero_point, dtype=torch.int64)
        try:
            return QuantizedWeight(
                values, scale.clone(), zero_point.clone(), self.axis, self.qscheme, self.dtype, self.shape
            )
        except QdeqError as error:
            refuse(where, "a consistent quantized tensor", f"({error})", _DAMAGED)


def _tensor_over(piece: memoryview, dtype: torch.dtype) -> Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    if piece.readonly or dtype == torch.bool:
        owned = bytearray(piece)  # torch tensors are writable; a bool must be 0 or 1
        if dtype == torch.bool:
            return torch.frombuffer(owned, dtype=torch.uint8) != 0
        return torch.frombuffer(owned, dtype=dtype)
    tensor = torch.frombuffer(piece, dtype=torch.uint8)
    if tensor.data_ptr() % width:
        tensor = tensor.clone()
    return tensor.view(dtype)


def _checked_layout(where: str, storage: Storage, offset: Any, shape: Any, stride: Any, bits: int) -> None:
    """Every index must lie in the storage; no two indices may share a value."""
    for name, sizes in (("shape", shape), ("stride", stride)):
        if not isinstance(sizes, tuple | list) or len(sizes) > _MAX_DIMS or not all(_is_size(n) for n in sizes):
            got = shown(sizes) if isinstance(sizes, tuple | list) and len(sizes) <= _MAX_DIMS else "something else"
            refuse(where, f"a {name} of sizes that are not negative", got, _DAMAGED)
    if len(shape) != len(stride) or not _is_size(offset):
        refuse(where, "a shape, as many strides and an offset", shown((offset, shape, stride)), _DAMAGED)
    numel = math.prod(shape)
    if numel == 0:
        if max((n for n in shape), default=0) >= 2**63 or math.prod(n for n in shape if n) >= 2**63:
            refuse(where, "a shape of less than 2**63 values", shown(shape), _DAMAGED)
        return
    if numel * max(bits, 8) >= 2**66:
        refuse(where, "a shape of less than 2**63 bytes", shown(shape), _DAMAGED)
    reach = 1
    for step, extent in sorted((step, n) for n, step in zip(shape, stride, strict=True) if n > 1):
        if step < reach:
            refuse(
                where, "strides that never repeat a value", f"shape {shown(shape)}, strides {shown(stride)}", _DAMAGED
            )
        reach += step * (extent - 1)
    held = storage.size * 8 // bits
    if offset + reach > held:
        refuse(where, f"at most {held} values in storage {shown(storage.key)}", f"up to {offset + reach}", _DAMAGED)


def _unwrapped(call: object) -> Call | None:
    """Take the parameters and subclasses off a rebuild call; None if it is none of ``torch._utils``."""
    for _ in range(4):
        if not isinstance(call, Call) or call.cls.module not in ("torch._utils", "torch._tensor"):
            return None
        name, args = call.cls.name, call.args
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and args:
            call = args[0]
            continue
        if name != "_rebuild_from_type_v2" or len(args) < 3 or not isinstance(args[0], Global):
            return call
        if not isinstance(args[2], tuple):
            return call
        call = Call(args[0], args[2])
    return None


def tensor_from(where: str, call: object, reader: StorageReader) -> StoredTensor | None:
    """Describe the tensor that a rebuild call stands for; None where ``call`` is something else.

    The calls are those of ``torch._utils``: ``_rebuild_tensor(storage, offset, size, stride)``, ``..._v2``, ``..._v3``
    (with a dtype), ``_rebuild_qtensor(storage, offset, size, stride, (qscheme, scale, zero point[, axis]))``, and
    ``_rebuild_parameter(tensor)``.

    Raises:
        QdeqValueError: the tensor does not fit its storage, or its quantization parameters do not fit it.

    """
    inner = _unwrapped(call)
    if inner is None:
        return None
    name, args = inner.cls.name, inner.args
    if name not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor") or len(args) < 4:
        refuse(where, "a dense tensor", shown(str(inner.cls)), "Save it as a plain CPU tensor.")
    storage = reader.storage(where, args[0])
    offset, shape, stride = args[1:4]
    kind = (storage.kind, storage.plain, storage.bits)
    if name == "_rebuild_tensor_v3":
        wanted = args[6].name if len(args) > 6 and isinstance(args[6], Global) else ""
        if wanted not in _BY_DTYPE:
            refuse(where, "a known dtype", shown(wanted), _DAMAGED)
        kind = _BY_DTYPE[wanted]
    _checked_layout(where, storage, offset, shape, stride, kind[2])
    tensor = StoredTensor(reader, storage, offset, tuple(shape), tuple(stride), *kind)
    if name != "_rebuild_qtensor":
        if kind[0].startswith(("q", "bytes")):
            refuse(where, "quantization parameters with quantized values", "none", _DAMAGED)
        return tensor
    return _quantized(where, tensor, args[4] if len(args) > 4 else None, reader)


def _quantized(where: str, tensor: StoredTensor, params: Any, reader: StorageReader) -> StoredTensor:
    if not isinstance(params, tuple | list) or len(params) < 3 or not tensor.dtype.startswith("q"):
        refuse(where, "quantized values with (qscheme, scale, zero point)", shown(tensor.dtype), _DAMAGED)
    scheme = params[0].name if isinstance(params[0], Global) else _SCHEME_NUMBERS.get(_plain_int(params[0]), "")
    scheme = scheme.replace("_symmetric", "_affine")
    parts = {
        key: getattr(tensor, key)
        for key in ("reader", "storage", "offset", "shape", "stride", "dtype", "plain", "bits")
    }
    if tensor.bits < _SUB_BYTE and (tensor.offset or tensor.stride != _contiguous(tensor.shape)):
        refuse(where, "a contiguous sub-byte tensor", f"strides {shown(tensor.stride)}", "Save a contiguous() copy.")
    if scheme == "per_tensor_affine":
        scale, zero_point = params[1:3]
        if not isinstance(scale, float | int) or not isinstance(zero_point, int) or abs(zero_point) >= 2**63:
            refuse(where, "a scale and a zero point", shown((scale, zero_point)), _DAMAGED)
        _check_zero_range(where, tensor.plain, zero_point)
        return StoredTensor(**parts, qscheme=scheme, scale=float(scale), zero_point=int(zero_point))
    if scheme not in ("per_channel_affine", "per_channel_affine_float_qparams") or len(params) < 4:
        refuse(where, "per_tensor_affine, per_channel_affine or its float form", shown(str(params[0])), _DAMAGED)
    scales, zero_points = (tensor_from(where, p, reader) for p in params[1:3])
    axis = params[3]
    if not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < len(tensor.shape):
        refuse(where, f"a channel axis from 0 to {len(tensor.shape) - 1}", shown(axis), _DAMAGED)
    for what, part in (("scales", scales), ("zero points", zero_points)):
        if part is None or part.qscheme is not None or part.shape != (tensor.shape[axis],):
            refuse(where, f"{tensor.shape[axis]} {what}", shown(None if part is None else part.shape), _DAMAGED)
    assert scales is not None  # checked above
    assert zero_points is not None
    if scales.dtype not in ("float64", "float32") or zero_points.dtype not in ("int64", "int32", "float32", "float64"):
        refuse(where, "float scales and integer zero points", f"{scales.dtype}, {zero_points.dtype}", _DAMAGED)
    if zero_points.dtype.startswith("float"):
        scheme = "per_channel_affine_float_qparams"  # torch._tensor writes per_channel_affine for both
    return StoredTensor(**parts, qscheme=scheme, axis=axis, scale=scales, zero_point=zero_points)


# c10/core/QScheme.h; TorchScript writes numbers.
_SCHEME_NUMBERS = {0: "per_tensor_affine", 1: "per_channel_affine", 2: "per_tensor_affine", 3: "per_channel_affine"}
_SCHEME_NUMBERS[4] = "per_channel_affine_float_qparams"


def _plain_int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _check_zero_range(where: str, plain: torch.dtype, zero_point: int) -> None:
    info = torch.iinfo(plain)
    if not info.min <= zero_point <= info.max:
        refuse(where, f"a zero point from {info.min} to {info.max}", str(zero_point), _DAMAGED)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def check_byteorder(where: str, data: bytes) -> None:
    """Refuse a file written on a machine of the other byte order."""
    if data.strip() != sys.byteorder.encode():
        refuse(where, f"byte order {sys.byteorder}", shown(data), "Load and save it again on a machine like this one.")
