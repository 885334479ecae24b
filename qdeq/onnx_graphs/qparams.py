"""Scale and zero point as an operator of ONNX states them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdeq.onnx_graphs.stored import INTEGERS

__all__ = ["Qparams"]


@dataclass(frozen=True, eq=False)
class Qparams:
    """What makes floats of integers: ``(q - zero_point) * scale``.

    Attributes:
        scale: float32, float16 or bfloat16: 0-d, 1-d along ``axis``, or of the weight's rank in blocks.
        zero_point: integers of the same shape, int64 but for blocks; zeros where the operator has none.
        code: element type of the integers; None where the operator does not say.
        axis: of the channels or blocks; None per tensor.
        block: values per block along ``axis``; 0 if there are none.
        names: of scale and zero point in the model, the second perhaps empty.
        dynamic: the name of the scale that is computed when the model runs; empty for a constant one.

    """

    scale: Tensor
    zero_point: Tensor
    code: int | None
    axis: int | None = None
    block: int = 0
    names: tuple[str, str] = field(default=("", ""))
    dynamic: str = ""

    def key(self) -> tuple[object, ...]:
        """Equal for equal ones; scales of blocks, which may be many, are told by their names."""
        if self.block:
            return (*self.names, self.axis, self.block)
        values = tuple(self.scale.double().reshape(-1).tolist()), tuple(self.zero_point.reshape(-1).tolist())
        return (*values, tuple(self.scale.shape), self.scale.dtype, self.axis, self.block, self.dynamic)

    @property
    def per_tensor(self) -> bool:
        """Whether one scale holds for all values."""
        return self.axis is None and not self.dynamic

    def bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest float that the integers stand for; None if they differ or are not known."""
        if not self.per_tensor or self.code not in INTEGERS:
            return None
        low, high = (
            (torch.tensor(end - int(self.zero_point)).float() * self.scale.float()).item()
            for end in INTEGERS[self.code]
        )
        return low, high

    def starts_at_zero(self) -> bool:
        """Whether the smallest integer stands for 0: nothing negative is left of what was quantized."""
        return self.per_tensor and self.code in INTEGERS and int(self.zero_point) == INTEGERS[self.code][0]
