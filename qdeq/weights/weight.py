"""QuantizedWeight: plain integers and plain scales, the one form between every source and every result.

The formulas (float32, rounded to nearest even, never fused), bit for bit those of torch's ``tensor.dequantize()`` on
CPU (``aten/src/ATen/native/quantized/AffineQuantizerBase.cpp``, ``cpu/kernels/QuantizedOpKernels.cpp``):

* per_tensor_affine: ``float(scale) * float(int32(q) - int32(zero_point))``
* per_channel_affine: ``float(double(float(q) - float(zero_point)) * scale)``, the product in double
* per_channel_affine_float_qparams: ``(float(q) - zero_point) * float(scale)``
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.weights import native as ops
from qdeq.weights.block_weight import BlockWeight, scale_range
from qdeq.weights.checks import check_dtype, check_out, check_scales, check_weight, describe
from qdeq.weights.integer_types import FLOAT_QPARAMS, INTEGER_TYPES, PER_TENSOR, IntegerType, scheme_of

__all__ = ["QuantizedWeight", "dequantize_weight", "explain_refusal", "reference", "report_facts", "weight_from_tensor"]

_NAMES = {kind.torch_dtype: name for name, kind in INTEGER_TYPES.items()}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A quantized tensor as plain integers, scales and zero points. Checked once, when it is made.

    Attributes:
        int_repr: the integers, on the CPU: int8, uint8 or int32 of ``shape`` and any strides. Sub-byte dtypes: 1-D
            uint8, the packed bytes, low bits first, values in the order of a contiguous tensor of ``shape``.
        scale: float64; 0-d (per tensor) or 1-d with one value per index of ``axis``.
        zero_point: int64 of the same shape as ``scale``; float32 where qscheme ends in ``float_qparams``.
        axis: the dimension of the channels, 0 <= axis < len(shape); None per tensor.
        qscheme: "per_tensor_affine", "per_channel_affine" or "per_channel_affine_float_qparams".
        dtype: "qint8", "quint8", "qint32", "quint4x2" or "quint2x4".
        shape: shape of the tensor that this stands for.
        origin: file and key that it was read from, for errors; empty where it comes from no file.

    Raises:
        QdeqTypeError: a field is of the wrong Python type.
        QdeqValueError: a field contradicts another, or a zero point lies outside the range of ``dtype``. Scales are
            judged by :meth:`dequantize`, which may be told to accept any.

    """

    int_repr: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int | None
    qscheme: str
    dtype: str
    shape: tuple[int, ...]
    origin: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        check_weight(self)

    @property
    def integers(self) -> IntegerType:
        """Width and range of the values."""
        return INTEGER_TYPES[self.dtype]

    @classmethod
    def from_tensor(cls, q: Tensor) -> QuantizedWeight:
        """Describe a tensor of torch's quantized dtypes.

        The integers **alias the tensor's storage**, without a copy: writing to one changes the other. Scales and zero
        points are cloned, since torch hands out views of memory that may belong to a packed object.

        Args:
            q: a quantized CPU tensor, any strides; sub-byte dtypes must be contiguous and whole.

        Raises:
            QdeqTypeError: not a quantized tensor.
            QdeqValueError: not on the CPU, or a view of sub-byte values.

        """
        return weight_from_tensor(q, "QuantizedWeight.from_tensor")

    def dequantize(
        self, *, out: Tensor | None = None, dtype: torch.dtype = torch.float32, allow_bad_scales: bool = False
    ) -> Tensor:
        """Return the float tensor of ``shape``; arguments and errors are those of :func:`qdeq.dequantize`."""
        return dequantize_weight(
            self, where="QuantizedWeight.dequantize", out=out, dtype=dtype, allow_bad_scales=allow_bad_scales
        )

    def values(self) -> Tensor:
        """Return the integers one per element: ``int_repr`` itself, or for sub-byte dtypes a fresh uint8 tensor."""
        bits = self.integers.bits
        if bits >= 8:
            return self.int_repr
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
        values: Tensor = (self.int_repr[:, None] >> shifts) & (2**bits - 1)
        return values.reshape(-1)[: math.prod(self.shape)].reshape(self.shape)

    def saturated_share(self) -> float:
        """Return the share (0 to 1) of values at the two ends of the integer range; 0 for an empty weight."""
        values = self.values()
        if values.numel() == 0:
            return 0.0
        at_ends = (values == self.integers.low).count_nonzero() + (values == self.integers.high).count_nonzero()
        return int(at_ends) / values.numel()

    def to_torch(self) -> Tensor:
        """Return a tensor of torch's quantized dtype with the same integers; its own memory.

        It is contiguous, or channels_last if ``int_repr`` is.
        """
        kind, scale, zero = self.integers, self.scale, self.zero_point
        if self.axis is None:
            q = torch._empty_affine_quantized(
                self.shape, scale=float(scale), zero_point=int(zero), dtype=kind.torch_dtype
            )
        else:
            scale = scale.float() if self.qscheme == FLOAT_QPARAMS else scale.clone()
            q = torch._empty_per_channel_affine_quantized(
                self.shape, scales=scale, zero_points=zero.clone(), axis=self.axis, dtype=kind.torch_dtype
            )
        if kind.bits < 8:
            packed = _alias(q, kind)
            packed.copy_(self.int_repr[: packed.numel()])
            return q
        if ops.fresh_strides(self.shape, self.int_repr.stride()) != q.stride():
            wanted = torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d
            q = q.contiguous(memory_format=wanted)
        _alias(q, kind).copy_(self.int_repr)
        return q


def _alias(q: Tensor, kind: IntegerType) -> Tensor:
    """The integers in the storage of a quantized tensor; the packed bytes of sub-byte values."""
    plain, storage = torch.empty(0, dtype=kind.storage), q.untyped_storage()
    if kind.bits < 8:
        return plain.set_(storage, 0, (kind.bytes_for(q.numel()),), (1,))
    return plain.set_(storage, q.storage_offset(), q.size(), q.stride())


def explain_refusal(
    error: RuntimeError, where: str, weight: QuantizedWeight, out: object, dtype: torch.dtype, allow_bad_scales: bool
) -> NoReturn:
    """Say why an operator refused: look at what it was given and raise the fitting QdeqError, else ``error``."""
    if not allow_bad_scales:
        check_scales(weight.origin or where, weight.scale)
    if out is not None:
        check_out(where, out, weight.shape, dtype, (weight.int_repr, weight.scale, weight.zero_point))
    raise error


def dequantize_weight(
    weight: QuantizedWeight,
    *,
    where: str,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
) -> Tensor:
    """:meth:`QuantizedWeight.dequantize` with the name that errors use."""
    # What the operator cannot see: a Python dtype, a tensor that requires grad, an out that is no tensor.
    check_dtype(where, dtype)
    if out is not None and (not isinstance(out, Tensor) or out.requires_grad or out.device.type != "cpu"):
        check_out(where, out, weight.shape, dtype)
    if torch.compiler.is_compiling():
        return _call(weight, dtype, allow_bad_scales, out)
    try:
        return _call(weight, dtype, allow_bad_scales, out)
    except RuntimeError as error:
        explain_refusal(error, where, weight, out, dtype, allow_bad_scales)


def _call(weight: QuantizedWeight, dtype: torch.dtype, allow_bad_scales: bool, out: Tensor | None) -> Tensor:
    return ops.dequantize(
        weight.int_repr,
        weight.scale,
        weight.zero_point,
        axis=weight.axis,
        shape=weight.shape,
        bits=INTEGER_TYPES[weight.dtype].bits,
        dtype=dtype,
        allow_bad_scales=allow_bad_scales,
        out=out,
    )


def weight_from_tensor(q: object, where: str) -> QuantizedWeight:
    """:meth:`QuantizedWeight.from_tensor` with the name that errors use."""
    if not isinstance(q, Tensor) or not q.is_quantized:
        remedy = "A float tensor has nothing to dequantize; for packed parameters and models see qdeq.dequantize."
        raise QdeqTypeError(expected(where, "a quantized tensor", describe(q), remedy))
    if q.device.type != "cpu":
        remedy = "Move it with .cpu() and the result back: CPU and GPU round differently."
        refuse(where, "a quantized tensor on the CPU", describe(q), remedy)
    name = _NAMES.get(q.dtype)
    if name is None:
        raise QdeqTypeError(expected(where, f"one of {list(INTEGER_TYPES)}", str(q.dtype), "This dtype is not known."))
    kind = INTEGER_TYPES[name]
    if kind.bits < 8 and (not q.is_contiguous() or q.storage_offset() != 0):
        remedy = "Dequantize the whole tensor, then take the view."
        refuse(where, f"a whole contiguous {name} tensor", "a view of one", remedy)
    ints = _alias(q, kind)
    scheme, axis = scheme_of(q), None
    if scheme == PER_TENSOR:
        scale, zero_point = torch.tensor(q.q_scale(), dtype=torch.float64), torch.tensor(q.q_zero_point())
    else:
        axis = q.q_per_channel_axis()
        scale, zero_point = q.q_per_channel_scales().double().clone(), q.q_per_channel_zero_points().clone()
        zero_point = zero_point.float() if scheme == FLOAT_QPARAMS else zero_point.long()
    return QuantizedWeight(ints, scale, zero_point, axis, scheme, name, tuple(q.shape))


def report_facts(weight: QuantizedWeight | BlockWeight) -> dict[str, Any]:
    """Return what a :class:`~qdeq.ReportEntry` says about the dtype, scales and zero points of a weight."""
    facts: dict[str, Any] = {"dtype": weight.dtype, "qscheme": weight.qscheme}
    if isinstance(weight, BlockWeight):
        low, high = scale_range(weight.scale)
        return facts | {"scale_min": low, "scale_max": high}
    if weight.scale.numel():
        for name, values in (("scale", weight.scale), ("zero_point", weight.zero_point)):
            facts |= {f"{name}_min": float(values.min()), f"{name}_max": float(values.max())}
    return facts


def reference(weight: QuantizedWeight) -> Tensor:
    """Compute the formulas at the head of this file in plain torch: float32, slow, for tests and for reading."""
    q = weight.values()
    if weight.axis is None:
        return (q.to(torch.int32) - weight.zero_point.to(torch.int32)).float() * weight.scale.float()
    per_channel = [-1 if dim == weight.axis else 1 for dim in range(len(weight.shape))]
    centred = q.float() - weight.zero_point.float().reshape(per_channel)
    if weight.qscheme == FLOAT_QPARAMS:
        return centred * weight.scale.float().reshape(per_channel)
    return (centred.double() * weight.scale.reshape(per_channel)).float()
