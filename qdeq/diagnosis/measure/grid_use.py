"""How well the grid of a quantized output fits the values that it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdeq.diagnosis.measure.running import squared_error
from qdeq.grids.grid import RANGES
from qdeq.words import dtype_name

__all__ = ["GridUse"]

# Variance of the rounding error, in steps: it is spread evenly over one step.
ROUNDING = 1 / 12


@dataclass
class GridUse:
    """What both models say of one grid: the integers of the int8 model, and the float values that belong there.

    A grid does not fit only where both say so: what is wrong before it shows on one side alone.
    """

    scale: float
    zero_point: int
    first: int  # smallest integer of the dtype
    last: int  # largest integer
    counts: Tensor = field(default_factory=lambda: torch.zeros(256, dtype=torch.int64))  # of each integer
    signal: float = 0.0  # sum of the squares of the float values
    rounding: float = 0.0  # sum of the squared errors that rounding makes, of the float values inside the grid
    clipping: float = 0.0  # sum of the squared errors that clipping makes
    low: float = math.inf  # smallest float value
    high: float = -math.inf  # largest one

    @classmethod
    def of(cls, output: Tensor) -> GridUse | None:
        """The grid of an output; None where it is a float or has more than 8 bits."""
        if not output.is_quantized or output.qscheme() != torch.per_tensor_affine or output.dtype == torch.qint32:
            return None
        return cls(output.q_scale(), output.q_zero_point(), *RANGES[dtype_name(output.dtype)])

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value of the grid."""
        return self.scale * (self.first - self.zero_point), self.scale * (self.last - self.zero_point)

    def count(self, output: Tensor) -> None:
        """Count the integers of an output in."""
        self.counts += torch.bincount((output.int_repr().reshape(-1).int() - self.first), minlength=256)

    def measure(self, value: Tensor) -> None:
        """Count float values in: what rounding and clipping them to this grid costs."""
        if value.numel() == 0:
            return
        low, high = torch.aminmax(value)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))
        inside = value.clamp(*self.limits)
        self.signal += squared_error(torch.zeros_like(value), value)
        self.clipping += squared_error(inside, value) if self._exceeds(low, high) else 0.0
        self.rounding += squared_error(torch.round(inside / self.scale) * self.scale, inside)

    def _exceeds(self, low: Tensor, high: Tensor) -> bool:
        return float(low) < self.limits[0] or float(high) > self.limits[1]

    @property
    def levels(self) -> int:
        """Integers from the smallest to the largest one in use."""
        used = self.counts.nonzero().flatten()
        return int(used[-1] - used[0]) + 1 if len(used) else 0

    @property
    def share(self) -> float:
        """Share of the grid that the float values reach across, 0 to 1."""
        low, high = max(self.low, self.limits[0]), min(self.high, self.limits[1])
        return max(0.0, high - low) / (self.limits[1] - self.limits[0])

    @property
    def clipped(self) -> float:
        """Share of the integers at an end of the grid that is not zero: there clipped values lie."""
        ends = [end for end in (self.first, self.last) if end != self.zero_point]
        at_ends = sum(int(self.counts[end - self.first]) for end in ends)
        return at_ends / max(1, int(self.counts.sum()))

    @property
    def _powers(self) -> Tensor:
        """Sum of the squares of the values of each integer, in squared steps."""
        steps = torch.arange(self.first, self.last + 1, dtype=torch.float64) - self.zero_point
        return self.counts * steps.square()

    @property
    def rounding_noise(self) -> float:
        """Power of the rounding error relative to the values', as both models see it."""
        total = float(self._powers.sum())
        ours = ROUNDING * int(self.counts.sum()) / total if total else math.inf
        return min(ours, self.rounding / self.signal if self.signal else 0.0)

    @property
    def clipping_noise(self) -> float:
        """Power of what clipping takes away relative to the values', as both models see it.

        The int8 model does not know what was there, only that it was as large as the end of the grid.
        """
        powers = self._powers
        ours = float((powers[0] + powers[-1]) / powers.sum().clamp_min(1e-30))
        return min(ours, self.clipping / self.signal if self.signal else 0.0)
