"""Plain integers among the weights: what the scales beside them make of them, and those that nothing explains.

A tensor of int8, uint8 or int32 is no float weight. It is one with scales where ``X_scale`` lies beside ``X``, as
``qdeq convert --keep int8`` and torch's reference modules name them:

=================  =====================================================================================
key                holds
=================  =====================================================================================
``X``              the integers, in the weight's shape
``X_scale``        one number, or one for each channel; also with dimensions of size 1, such as (channels, 1)
``X_zero_point``   of as many values; floating point: torch's scheme for embeddings. Without it: zeros
``X_axis``         the dimension of the channels. Without it: the first that has as many, or that of ``X_scale``
=================  =====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import refuse
from qdeq.layers.names import is_inner_weight
from qdeq.state_dicts.parts import Plan, Scaled, ShapeOf, Target
from qdeq.state_dicts.rowwise import looks_rowwise
from qdeq.weights.integer_types import FLOAT_QPARAMS, PER_CHANNEL, PER_TENSOR
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name, shape_text

__all__ = ["INTEGERS_REMEDY", "plain_dtype", "scaled_weight", "take_scaled", "unexplained"]

_SUFFIXES = ("_scale", "_zero_point", "_axis")
_DTYPES = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}
INTEGERS_REMEDY = (
    "Put its scale beside it as <name>_scale, or dequantize it before; a file that qdeq wrote is read with qdeq.open, "
    "a table with scale and offset in each row with rowwise=[name]."
)


def plain_dtype(value: Any) -> str:
    """Torch's name of the dtype of a tensor, read or in a file; empty for anything else and for quantized ones."""
    if isinstance(value, Tensor):
        return "" if value.is_quantized else dtype_name(value.dtype)
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype_name(dtype)
    return dtype if isinstance(dtype, str) and getattr(value, "qscheme", None) is None else ""


def take_scaled(where: str, plan: Plan, rest: dict[str, Any], shape_of: ShapeOf) -> None:
    """Move integers with their scales from ``rest`` into ``plan``."""
    for key in [key for key in rest if f"{key}_scale" in rest and plain_dtype(rest[key]) in _DTYPES]:
        scale, zero_point, axis = (rest.get(key + suffix) for suffix in _SUFFIXES)
        if not _fits(shape_of(rest[key]) or (), (scale, zero_point, axis), shape_of):
            continue
        plan.add(where, key, Target(Scaled((rest.pop(key), scale, zero_point, axis)), key))
        for suffix in _SUFFIXES:
            if rest.pop(key + suffix, None) is not None:
                plan.dropped[key + suffix] = f"used for {key}"


def _fits(shape: tuple[int, ...], beside: tuple[Any, Any, Any], shape_of: ShapeOf) -> bool:
    """Whether scale, zero point and axis, tensors or numbers, are such as integers of a shape need."""
    scale, zero_point, axis = beside
    scales, zeros, axes = (() if isinstance(value, int | float) else shape_of(value) for value in beside)
    if scales is None or not (isinstance(scale, float) or plain_dtype(scale).startswith(("float", "bfloat"))):
        return False
    if zero_point is not None and (zeros is None or math.prod(zeros) != math.prod(scales)):
        return False
    if axis is not None and (axes is None or math.prod(axes) != 1):
        return False
    return bool(_axes(shape, scales))


def _axes(shape: tuple[int, ...], scales: tuple[int, ...]) -> list[int | None]:
    """The dimensions that scales of this shape can belong to; [None] for one scale for all."""
    count = math.prod(scales)
    if count == 1:
        return [None]
    if len(scales) == len(shape) and len(scales) > 1:
        return [at for at, size in enumerate(scales) if size == count == shape[at]]
    return [at for at, size in enumerate(shape) if size == count and len(scales) == 1]


def scaled_weight(where: str, integers: Tensor, scale: Any, zero_point: Any, axis: Any) -> QuantizedWeight:
    """Put a weight together from what lies beside each other.

    Raises:
        QdeqValueError: an axis that does not fit the scales, or scales and zero points that are out of range.

    """
    dtype, shape = _DTYPES[dtype_name(integers.dtype)], tuple(integers.shape)
    scale = torch.as_tensor(scale, dtype=torch.float64).detach()
    axes = _axes(shape, tuple(scale.shape))
    at = axes[0] if axis is None or axes == [None] else int(axis)
    if at not in axes:
        remedy = "The axis beside the weight does not fit its scales."
        refuse(where, f"an axis among {axes}", str(at), remedy)
    scales = scale.reshape(() if at is None else (-1,)).clone()
    zeros = torch.as_tensor(0 if zero_point is None else zero_point).detach()
    zeros = zeros.expand(scales.shape) if zeros.dim() == 0 else zeros.reshape(scales.shape)
    scheme = PER_TENSOR if at is None else PER_CHANNEL
    if at is not None and zeros.is_floating_point():
        scheme, zeros = FLOAT_QPARAMS, zeros.float()
    elif zeros.is_floating_point() and not torch.equal(zeros, zeros.round()):
        refuse(where, "whole numbers as zero point", str(zeros.tolist())[:60], "Only scales of channels have others.")
    else:
        zeros = zeros.long()
    return QuantizedWeight(integers.detach(), scales, zeros.clone(), at, scheme, dtype, shape)


def unexplained(values: Mapping[str, Any]) -> dict[str, str]:
    """Weights that are integers without scales: float name -> what they are, in words.

    ``values``: float name -> tensor, read or in a file, or anything else.
    """
    found = {}
    for name, value in values.items():
        last, dtype = name.rpartition(".")[2], plain_dtype(value)
        if dtype in (*_DTYPES, "int16", "int64") and (last.endswith("weight") or is_inner_weight(last)):
            table = isinstance(value, Tensor) and looks_rowwise(value)
            what = "rows that end like scale and offset: a row-wise table?" if table else "no scale beside them"
            found[name] = f"plain {dtype} of shape {shape_text(value.shape)}, {what}"
    return found
