"""Packed weights through torch's ``unpack()``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdeq.weight import QuantizedWeight, dequantize_weight


def is_packed_weight(obj: object) -> bool:
    """Whether ``obj`` is an opaque object of torch."""
    return isinstance(obj, torch.ScriptObject)


def unpack_packed(obj: Any, *, where: str) -> QuantizedWeight:
    """The integers, scales and zero points of a packed weight."""
    del where
    return QuantizedWeight.from_tensor(obj.unpack()[0])


def dequantize_packed(
    obj: Any,
    *,
    where: str,
    out: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
) -> Tensor:
    """The float weight."""
    weight = unpack_packed(obj, where=where)
    return dequantize_weight(weight, where=where, out=out, dtype=dtype, allow_bad_scales=allow_bad_scales)


def packed_bias(obj: Any) -> Tensor | None:
    """A copy of the bias."""
    bias = obj.bias()
    return None if bias is None else bias.detach().clone()
