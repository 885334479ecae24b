"""Packed weights: the opaque objects in which torch's quantized modules keep their weight and bias.

fbgemm's objects are read where they lie, by the extension that belongs to the one torch it was built with
(:mod:`qdeq.weights.native` loads it only into that torch). Everything else (another engine, another torch, a packing
that is not known) goes through torch's own ``unpack()``: slower, the same bits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from qdeq.errors import QdeqError, QdeqTypeError, expected
from qdeq.weights import native as ops
from qdeq.weights.checks import check_dtype, check_out, check_scales, describe
from qdeq.weights.direct_conv import unreadable_weight
from qdeq.weights.integer_types import PER_CHANNEL, PER_TENSOR
from qdeq.weights.packed_state import CELL, CONV2D, EMBEDDING, is_lost, packed_class, packed_kind, unpack_with_torch
from qdeq.weights.weight import QuantizedWeight, dequantize_weight

__all__ = [
    "dequantize_packed",
    "engine_of",
    "is_direct_conv",
    "is_packed_weight",
    "open_packed",
    "packed_bias",
    "packed_shape",
    "read_convolutions",
    "unpack_packed",
]

_CLASSES = {
    "fbgemm": ("PackedLinearWeight", "PackedConvWeight<2>", "PackedConvWeight<3>"),
    "onednn": ("PackedLinearWeightsOnednn", "PackedConvWeightsOnednn<2>", "PackedConvWeightsOnednn<3>"),
    "qnnpack": ("PackedLinearWeightsQnnp", "PackedConvWeightsQnnp<2>", "PackedConvWeightsQnnp<3>"),
}
_ENGINES = {name: engine for engine, names in _CLASSES.items() for name in names}
# What csrc/this_torch/packed.cpp answers where it has no result.
_DIRECT_CONV, _BAD_SCALE, _BAD_OUT = "direct", "bad scale", "bad out"


def is_packed_weight(obj: object) -> bool:
    """Say whether ``obj`` is a packed weight: the ScriptObject of a quantized linear, convolution or embedding.

    Transposed, sparse and float16 ones are included; a packed RNN cell, which holds two of them, is not.
    """
    return packed_kind(obj) not in ("", CELL)


def dequantize_packed(
    obj: object,
    *,
    where: str,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
) -> Tensor:
    """:func:`qdeq.dequantize` of a packed object, with the name that errors begin with.

    A linear's weight is of shape (out_features, in_features), a convolution's as in torch, channels_last, with a conv1d
    as (out_channels, in_channels / groups, 1, width), an embedding's (rows, columns).

    Raises:
        QdeqError: torch lost the weight (see :func:`unpack_packed`).

    """
    if dtype in ops.OUT_DTYPES and isinstance(obj, torch.ScriptObject) and (out is None or isinstance(out, Tensor)):
        native = _native()
        if native is not None:
            result = native.dequantize(obj, out, dtype, allow_bad_scales)
            if not isinstance(result, str):
                return cast(Tensor, result)
            if result == _DIRECT_CONV:
                raise QdeqError(unreadable_weight(where))
            if result == _BAD_SCALE:
                check_scales(where, native.qparams(obj)[0])
            if result == _BAD_OUT:
                check_out(where, out, native.layout(obj)[1], dtype)
    _check_packed(obj, where)
    check_dtype(where, dtype)
    weight = _unpack(obj, where)
    if weight.is_quantized:
        quantized = QuantizedWeight.from_tensor(weight)
        return dequantize_weight(quantized, where=where, out=out, dtype=dtype, allow_bad_scales=allow_bad_scales)
    if out is None:  # float16 values, which stand for themselves
        return weight.to(dtype)
    check_out(where, out, weight.shape, dtype)
    return out.copy_(weight)


def unpack_packed(obj: object, *, where: str) -> QuantizedWeight:
    """Return the integers, scales and zero points of a packed object, in memory of their own.

    The integers have the strides of ``unpack()[0].dequantize()``.

    Raises:
        QdeqTypeError: ``obj`` is no packed weight, or one that holds float16 values and no integers.
        QdeqError: torch cannot give the weight back. fbgemm's direct transposed convolution is the case where it says
            nothing: its ``unpack()`` returns uninitialized memory.

    """
    _check_packed(obj, where)
    native = _native()
    if native is not None and packed_kind(obj) != EMBEDDING:  # an embedding's bytes are those that unpack() copies
        layout, shape, _, per_channel = native.layout(obj)
        if layout == _DIRECT_CONV:
            raise QdeqError(unreadable_weight(where))
        if layout:  # empty for what cannot be read in place
            axis, scheme = (0, PER_CHANNEL) if per_channel else (None, PER_TENSOR)
            scale, zero = native.qparams(obj)
            return QuantizedWeight(native.int_repr(obj), scale, zero, axis, scheme, "qint8", tuple(shape))
    weight = _unpack(obj, where)
    if not weight.is_quantized:
        remedy = "Use dequantize: the values are float16 and stand for themselves."
        raise QdeqTypeError(expected(where, "a packed weight of integers", "float16 packed weight", remedy))
    quantized = QuantizedWeight.from_tensor(weight)
    # qnnpack and onednn hand out the weight that they go on using.
    return dataclasses.replace(quantized, int_repr=quantized.int_repr.clone())


def is_direct_conv(obj: object) -> bool:
    """Whether ``obj`` is fbgemm's direct transposed convolution, whose ``unpack()`` is uninitialized memory."""
    if packed_kind(obj) != CONV2D:
        return False
    native = _native()
    if native is not None:
        return bool(native.layout(obj)[0] == _DIRECT_CONV)
    return is_lost(obj, unpack_with_torch(obj, "is_direct_conv")[0])


def engine_of(obj: object) -> str:
    """The engine that packed a weight: fbgemm, onednn or qnnpack; empty where the extension is not there to look.

    torch's name of the engine does not tell: ``x86`` packs with onednn or with fbgemm, by CPU and shape.
    """
    native = _native()
    return "" if native is None else _ENGINES.get(native.packed_by(obj), "")


def packed_shape(obj: object, *, where: str) -> tuple[int, ...]:
    """Return the shape of the weight in a packed object, as :func:`dequantize_packed` gives it.

    Raises:
        QdeqTypeError: ``obj`` is no packed weight.
        QdeqError: torch cannot unpack the object.

    """
    _check_packed(obj, where)
    native = _native()
    if native is not None and packed_kind(obj) != EMBEDDING:
        layout, shape, _, _ = native.layout(obj)
        if layout:
            return tuple(shape)
    return tuple(unpack_with_torch(obj, where)[0].shape)


def packed_bias(obj: object, *, where: str = "packed_bias") -> Tensor | None:
    """Return the bias that :func:`open_packed` does; qnnpack answers with zeros where the layer had none."""
    return open_packed(obj, where=where)[1]


def open_packed(obj: object, *, where: str) -> tuple[Any, Tensor | None]:
    """Return what to read the weight of a packed object from, and a copy of its bias.

    Most engines give the bias only together with the weight, so both are asked for once.

    Returns:
        ``obj`` itself where it can be read in place, otherwise the weight as torch unpacks it, which may be memory
        that the engine goes on using; and the bias as in :func:`packed_bias`, which requires gradients if the packed
        one does.

    Raises:
        QdeqTypeError: ``obj`` is no packed weight.
        QdeqError: torch cannot unpack the object.

    """
    _check_packed(obj, where)
    if packed_kind(obj) == EMBEDDING:
        return obj, None
    native = _native()
    known, bias = native.bias(obj) if native is not None else (False, None)
    weight: Any = obj
    if not known:
        weight, bias = unpack_with_torch(obj, where)
        if not weight.is_quantized or is_lost(obj, weight):
            weight = obj  # float16, or a weight that torch lost: dequantize_packed() knows what to do and to say
    return weight, None if bias is None else bias.detach().clone().requires_grad_(bias.requires_grad)


def read_convolutions(
    objs: Sequence[Any], outs: Sequence[Tensor], *, allow_bad_scales: bool = False
) -> list[tuple[bool, Tensor | None]]:
    """Dequantize many packed 2-d convolutions in one call, because the calls cost more than small weights.

    Args:
        objs: ScriptObjects of ``Conv2dPackedParamsBase``, of any engine.
        outs: as many contiguous tensors of the weights' shapes, float32, bfloat16 or float16, which take the result.
        allow_bad_scales: as in :func:`dequantize_packed`.

    Returns:
        For each whether it was read, and a copy of its bias. Transposed ones are not, nor is any in a torch that the
        extension was not built for, nor what :func:`dequantize_packed` refuses: it says why.

    """
    native = _native()
    if native is None or not objs:
        return [(False, None)] * len(objs)
    return cast(list[tuple[bool, Tensor | None]], native.read_all(objs, outs, allow_bad_scales))


def _native() -> Any:
    """Return the extension, None where it may not be loaded."""
    return None if ops.why_not_in_place() else ops.this_torch


def _unpack(obj: object, where: str) -> Tensor:
    weight = unpack_with_torch(obj, where)[0]
    if is_lost(obj, weight):
        raise QdeqError(unreadable_weight(where))
    return weight


def _check_packed(obj: object, where: str) -> None:
    if not is_packed_weight(obj):
        got = packed_class(obj) or describe(obj)
        remedy = "Pass the ScriptObject of a quantized linear, convolution or embedding."
        raise QdeqTypeError(expected(where, "a packed weight", got, remedy))
