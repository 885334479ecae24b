"""The modules that clamp or round an activation in the rebuilt model, and how they are put in and taken out.

``convert()`` gives every quantized operation a scale and a zero point for its output. The float model has no use for
them (``activations="drop"``). ``"clamp"`` limits each output to the range that they can represent; ``"fake_quant"``
rounds it to their grid as well, which is what the int8 model computes. In both modes the module that carries the
output gets a child named ``activation_post_process``, as in torch's prepared models, and a forward hook that calls
it. Classes, parameter names and the float model's forward stay as they are.
"""

# No postponed annotations here: torch.jit.script reads those of classes, and does not resolve names.
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.grids.grid import Grid

__all__ = ["Clamp", "FakeQuantize", "PostProcess"]


class PostProcess(nn.Module):
    """Holds an activation's scale and zero point as buffers.

    Buffers:
        scale: float32, 0-d. It stays float32 when the model is cast: bfloat16 would change the grid by up to 0.4 %.
        zero_point: int32, 0-d.

    Attributes:
        number: the one that the operation in front has in the code, where the int8 model takes another; else None.

    """

    scale: Tensor
    zero_point: Tensor
    number: float | None

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(grid.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(grid.zero_point, dtype=torch.int32))
        self.quant_min = grid.quant_min
        self.quant_max = grid.quant_max
        self.number = None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = self.scale
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.scale.dtype != torch.float32:
            self.scale = before.to(self.scale.device)
        return result

    def extra_repr(self) -> str:
        """Scale, zero point and range, as ``print(model)`` shows them."""
        values = "" if self.scale.is_meta else f"scale={float(self.scale):g}, zero_point={int(self.zero_point)}, "
        return f"{values}range=[{self.quant_min}, {self.quant_max}]"


class Clamp(PostProcess):
    """Clamps to the values that scale and zero point can represent, without rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Clamp a float tensor of any shape; the gradient is that of ``torch.clamp``."""
        low = (self.quant_min - self.zero_point) * self.scale
        high = (self.quant_max - self.zero_point) * self.scale
        return torch.clamp(input, low.to(input.dtype), high.to(input.dtype))


class FakeQuantize(PostProcess):
    """Quantizes and dequantizes: the value that the int8 model passes on, as a float.

    The gradient is 1 inside the range and 0 outside (straight through). Goes to ONNX as QuantizeLinear and
    DequantizeLinear. bfloat16 and float16 inputs are rounded to the grid in float32.

    Args:
        grid: the grid.
        ties: the input is an average of values on this same grid, which the int8 kernels form from integers: halfway
            between two grid points is exactly halfway, while a float average lands beside it. ``"integer"``: such
            ties go to the even integer; ``"value"``: to the one an even number of steps from the zero point;
            ``""``: no average, the float is taken as it is. A tie is seen to 1/4096 of a step.
        zero_point_first: the zero point is added, in float32, before rounding, as ``torch.quantize_per_tensor`` and
            onednn's layers do: with an odd zero point ties go to the other side, and a large one makes ties of values
            a millionth of a step beside one. All else adds it to the rounded integer.

    """

    def __init__(self, grid: Grid, *, ties: str = "", zero_point_first: bool = False) -> None:
        super().__init__(grid)
        self.ties = ties
        self.zero_point_first = zero_point_first

    def forward(self, input: Tensor) -> Tensor:
        """Round a float tensor of any shape to the grid."""
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        if self.ties or self.zero_point_first:
            # Which grid point: decided here, in float32; the operator below then has exact grid points to round, and
            # gives the range, the gradient and ONNX's QuantizeLinear. The difference is 0, NaN for infinities.
            wide = self._steps(wide.detach().float()) * self.scale + torch.nan_to_num(wide - wide.detach())
        rounded = torch.fake_quantize_per_tensor_affine(
            wide, self.scale, self.zero_point, self.quant_min, self.quant_max
        )
        return rounded.to(input.dtype)

    def _steps(self, value: Tensor) -> Tensor:
        """How many steps from the zero point the grid point of each value lies, the range aside."""
        scaled = value * (1 / self.scale)
        if self.ties:
            scaled = torch.round(scaled * 4096) / 4096
        if self.zero_point_first or self.ties == "integer":
            return torch.round(scaled + self.zero_point) - self.zero_point
        return torch.round(scaled)
