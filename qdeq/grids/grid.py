"""The grid of a quantized value: scale, zero point and integer range."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RANGES", "Grid", "Output", "default_dtype"]

# What a converted operation clamps to. A qconfig's reduce_range only chose the scale; it does not bound the result.
RANGES = {"quint8": (0, 255), "qint8": (-128, 127), "qint32": (-(2**31), 2**31 - 1)}


@dataclass(frozen=True)
class Grid:
    """The values ``(q - zero_point) * scale`` for integers q from ``quant_min`` to ``quant_max``."""

    scale: float
    zero_point: int
    quant_min: int = 0
    quant_max: int = 255


@dataclass(frozen=True)
class Output:
    """How a quantized layer rounds its output.

    Attributes:
        scale: of the output.
        zero_point: of the output.
        dtype: torch's name of its dtype where the layer states it; empty for one that follows the model's input.
        zero_point_first: the zero point is added before rounding (:class:`qdeq.grids.modules.FakeQuantize`).
        engine: that runs a layer with a packed weight; empty for any other, and where it cannot be told.

    """

    scale: float
    zero_point: int
    dtype: str = ""
    zero_point_first: bool = False
    engine: str = ""

    def grid(self, default: str) -> Grid:
        """The grid; ``default`` is the dtype of outputs that state none."""
        return Grid(self.scale, self.zero_point, *RANGES.get(self.dtype, RANGES[default]))


def default_dtype(outputs: list[Output]) -> str:
    """The dtype of outputs whose layer states none: they follow the model's input."""
    stated = {output.dtype for output in outputs if output.dtype in RANGES}
    return stated.pop() if len(stated) == 1 else "quint8"
