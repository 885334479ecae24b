"""torch's quantized dtypes and schemes, by name: a torch that has dropped them must still read files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FLOAT_QPARAMS", "INTEGER_TYPES", "PER_CHANNEL", "PER_TENSOR", "IntegerType", "scheme_of"]

PER_TENSOR = "per_tensor_affine"
PER_CHANNEL = "per_channel_affine"
FLOAT_QPARAMS = "per_channel_affine_float_qparams"


@dataclass(frozen=True)
class IntegerType:
    """One of torch's quantized dtypes: where its values lie and what they may be."""

    torch_dtype: torch.dtype | None
    storage: torch.dtype
    bits: int
    low: int
    high: int

    def bytes_for(self, numel: int) -> int:
        """Bytes that hold ``numel`` values, packed without gaps."""
        return (numel * self.bits + 7) // 8


INTEGER_TYPES = {
    name: IntegerType(getattr(torch, name, None), storage, bits, low, high)
    for name, storage, bits, low, high in (
        ("qint8", torch.int8, 8, -128, 127),
        ("quint8", torch.uint8, 8, 0, 255),
        ("qint32", torch.int32, 32, -(2**31), 2**31 - 1),
        ("quint4x2", torch.uint8, 4, 0, 15),
        ("quint2x4", torch.uint8, 2, 0, 3),
    )
}


def scheme_of(q: Tensor) -> str:
    """The scheme of a tensor of torch's quantized dtypes; a symmetric one is the affine one with zero points of 0."""
    return str(q.qscheme()).removeprefix("torch.").replace("symmetric", "affine")
