"""Tensors as a checkpoint describes them, checked against the bytes they claim, and read when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqError
from qdeq.files.torch_archive.pickled import Call, Global
from qdeq.files.torch_archive.storages import BY_DTYPE, HOSTILE, Storage, StorageReader
from qdeq.files.untrusted import is_size, refuse, shown
from qdeq.weights.weight import QuantizedWeight

__all__ = ["StoredTensor", "tensor_from"]

_MAX_DIMS = 64
_SUB_BYTE = 8


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
            refuse(where, f"{(last + 1) * width} bytes", f"{len(piece)}", HOSTILE)
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
                values, scale.clone(), zero_point.clone(), self.axis, self.qscheme, self.dtype, self.shape, where
            )
        except QdeqError as error:
            refuse(where, "a consistent quantized tensor", f"({error})", HOSTILE)


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
        if not isinstance(sizes, tuple | list) or len(sizes) > _MAX_DIMS or not all(is_size(n) for n in sizes):
            got = shown(sizes) if isinstance(sizes, tuple | list) and len(sizes) <= _MAX_DIMS else "something else"
            refuse(where, f"a {name} of sizes that are not negative", got, HOSTILE)
    if len(shape) != len(stride) or not is_size(offset):
        refuse(where, "a shape, as many strides and an offset", shown((offset, shape, stride)), HOSTILE)
    numel = math.prod(shape)
    if numel == 0:
        if max((n for n in shape), default=0) >= 2**63 or math.prod(n for n in shape if n) >= 2**63:
            refuse(where, "a shape of less than 2**63 values", shown(shape), HOSTILE)
        return
    if numel * max(bits, 8) >= 2**66:
        refuse(where, "a shape of less than 2**63 bytes", shown(shape), HOSTILE)
    reach = 1
    for step, extent in sorted((step, n) for n, step in zip(shape, stride, strict=True) if n > 1):
        if step < reach:
            refuse(
                where, "strides that never repeat a value", f"shape {shown(shape)}, strides {shown(stride)}", HOSTILE
            )
        reach += step * (extent - 1)
    held = storage.size * 8 // bits
    if offset + reach > held:
        refuse(where, f"at most {held} values in storage {shown(storage.key)}", f"up to {offset + reach}", HOSTILE)


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
        if wanted not in BY_DTYPE:
            refuse(where, "a known dtype", shown(wanted), HOSTILE)
        kind = BY_DTYPE[wanted]
    _checked_layout(where, storage, offset, shape, stride, kind[2])
    tensor = StoredTensor(reader, storage, offset, tuple(shape), tuple(stride), *kind)
    if name != "_rebuild_qtensor":
        if kind[0].startswith(("q", "bytes")):
            refuse(where, "quantization parameters with quantized values", "none", HOSTILE)
        return tensor
    return _quantized(where, tensor, args[4] if len(args) > 4 else None, reader)


def _quantized(where: str, tensor: StoredTensor, params: Any, reader: StorageReader) -> StoredTensor:
    if not isinstance(params, tuple | list) or len(params) < 3 or not tensor.dtype.startswith("q"):
        refuse(where, "quantized values with (qscheme, scale, zero point)", shown(tensor.dtype), HOSTILE)
    scheme = params[0].name if isinstance(params[0], Global) else _SCHEME_NUMBERS.get(_plain_int(params[0]), "")
    scheme = scheme.replace("_symmetric", "_affine")
    if tensor.bits < _SUB_BYTE and (tensor.offset or tensor.stride != _contiguous(tensor.shape)):
        refuse(where, "a contiguous sub-byte tensor", f"strides {shown(tensor.stride)}", "Save a contiguous() copy.")
    if scheme == "per_tensor_affine":
        scale, zero_point = params[1:3]
        numbers = isinstance(scale, float | int) and isinstance(zero_point, int)
        if not numbers or any(isinstance(n, int) and abs(n) >= 2**63 for n in (scale, zero_point)):
            refuse(where, "a scale and a zero point", shown((scale, zero_point)), HOSTILE)
        _check_zero_range(where, tensor.plain, zero_point)
        return replace(tensor, qscheme=scheme, scale=float(scale), zero_point=int(zero_point))
    if scheme not in ("per_channel_affine", "per_channel_affine_float_qparams") or len(params) < 4:
        refuse(where, "per_tensor_affine, per_channel_affine or its float form", shown(params[0]), HOSTILE)
    scales, zero_points = (tensor_from(where, p, reader) for p in params[1:3])
    axis = params[3]
    if not isinstance(axis, int) or isinstance(axis, bool) or not 0 <= axis < len(tensor.shape):
        refuse(where, f"a channel axis from 0 to {len(tensor.shape) - 1}", shown(axis), HOSTILE)
    for what, part in (("scales", scales), ("zero points", zero_points)):
        if part is None or part.qscheme is not None or part.shape != (tensor.shape[axis],):
            refuse(where, f"{tensor.shape[axis]} {what}", shown(None if part is None else part.shape), HOSTILE)
    assert scales is not None  # checked above
    assert zero_points is not None
    if scales.dtype not in ("float64", "float32") or zero_points.dtype not in ("int64", "int32", "float32", "float64"):
        refuse(where, "float scales and integer zero points", f"{scales.dtype}, {zero_points.dtype}", HOSTILE)
    if zero_points.dtype.startswith("float"):
        scheme = "per_channel_affine_float_qparams"  # torch._tensor writes per_channel_affine for both
    return replace(tensor, qscheme=scheme, axis=axis, scale=scales, zero_point=zero_points)


# c10/core/QScheme.h; TorchScript writes numbers.
_SCHEME_NUMBERS = {0: "per_tensor_affine", 1: "per_channel_affine", 2: "per_tensor_affine", 3: "per_channel_affine"}
_SCHEME_NUMBERS[4] = "per_channel_affine_float_qparams"


def _plain_int(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _check_zero_range(where: str, plain: torch.dtype, zero_point: int) -> None:
    info = torch.iinfo(plain)
    if not info.min <= zero_point <= info.max:
        refuse(where, f"a zero point from {info.min} to {info.max}", str(zero_point), HOSTILE)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))
