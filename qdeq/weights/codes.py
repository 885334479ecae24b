"""What the codes of released checkpoints stand for: a table of values for each kind, and how codes lie in bytes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qdeq.words import dtype_name

__all__ = ["FLOAT8_TYPES", "KINDS", "CodeKind", "unpack_codes"]

FLOAT8_TYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class CodeKind:
    """One kind of codes. Code ``i`` of a row is in its bits ``i * bits`` to ``(i + 1) * bits - 1``, low bits first.

    Attributes:
        name: torch's name of the dtype whose bits the codes are ("float8_e4m3fn"), "float4_e2m1", "int8" (two's
            complement), or "int4_excess" and the like: the integer plus half the range, so never negative.
        bits: 1 to 8.

    """

    name: str
    bits: int

    @functools.cached_property
    def values(self) -> Tensor:
        """Values of codes 0 to 2^bits - 1 in float32. What a NaN looks like is one pattern: all kernels agree on it."""
        codes = torch.arange(2**self.bits, dtype=torch.uint8)
        if self.name == "float4_e2m1":
            return torch.tensor([*_FLOAT4, *(-value for value in _FLOAT4)])
        if self.name.startswith("int"):
            return codes.view(torch.int8).float() if self.name == "int8" else codes.float() - 2 ** (self.bits - 1)
        table = codes.view(getattr(torch, self.name)).float()
        return torch.where(table.isnan(), torch.tensor(math.nan), table)

    def row_bytes(self, cols: int) -> int:
        """Bytes that a row of ``cols`` codes needs at least."""
        return (cols * self.bits + 7) // 8


KINDS = {
    kind.name: kind
    for kind in (
        *(CodeKind(dtype_name(dtype), 8) for dtype in FLOAT8_TYPES),
        CodeKind("float4_e2m1", 4),
        CodeKind("int8", 8),
        *(CodeKind(f"int{bits}_excess", bits) for bits in range(1, 9)),
    )
}


def unpack_codes(rows: Tensor, bits: int, cols: int) -> Tensor:
    """Return the codes of rows of bytes, one in each uint8, ``cols`` in a row.

    Args:
        rows: uint8 of shape (..., bytes).
        bits: of a code.
        cols: codes in a row; what is left of the bytes is padding.

    """
    single = (rows[..., :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    spread = single.flatten(-2)[..., : cols * bits].reshape(*rows.shape[:-1], cols, bits)
    codes: Tensor = (spread * 2 ** torch.arange(bits, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return codes
