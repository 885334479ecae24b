"""Layers that compute what fbgemm's int8 kernels compute, bit for bit: sums of integers, rounded as fbgemm rounds them.

A quantized layer sums products of integers, which is exact, and brings each sum to the grid of its output in float32.
The float layer keeps its class, its forward and its parameters. Its ``activation_post_process`` is handed the layer and
its input, and gives the int8 layer's output in place of the float one; gradients are those of
:class:`qdeq.grids.modules.FakeQuantize`. The integers are not kept: value / scale, rounded, is the integer, as a
float32 product ``scale * integer`` is within 2**-24 of the true one, and integers have 9 bits at most.

The sums are formed in float64. A product of 9 and 8 bits is an integer below 2**16, so every partial sum of fewer than
2**37 of them is an integer below 2**53, which float64 holds: the result is exact in any order of summation.

fbgemm's rounding (``src/QuantUtilsAvx2.cc``, ``requantizeOutputProcessingAvx2``; its multipliers from ATen's
``qlinear.cpp`` and ``qconv.cpp``), every step in float32::

    both  = input_scale * weight_scale
    total = float(sum) + bias / both                      # weight scales per channel
    total = fma(bias, 1 / both, float(sum))               # one scale for the whole weight
    steps = round_to_even(total * (both / output_scale))
    y     = (clamp(steps + zero_point, quant_min, quant_max) - zero_point) * output_scale

A fused ReLU raises the lower bound to the zero point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.errors import QdeqTypeError, expected
from qdeq.grids.grid import Grid
from qdeq.grids.modules import FakeQuantize, PostProcess
from qdeq.tree.post_process import install, recompute, remove
from qdeq.weights.weight import QuantizedWeight

__all__ = ["SUMMING", "ExactInput", "IntegerSums", "use_integer_sums"]

Sums: TypeAlias = Callable[[Any, Tensor, Tensor], Tensor]

_INT32 = 2**31
# Below it, float32 products with integers have fewer digits than the rounding relies on.
_SMALLEST = torch.finfo(torch.float32).tiny
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def _convolve(layer: Any, steps: Tensor, weight: Tensor) -> Tensor:
    summed: Tensor = layer._conv_forward(steps, weight, None)  # pads as the layer does
    return summed


def _transposed(run: Callable[..., Tensor]) -> Sums:
    def convolve(layer: Any, steps: Tensor, weight: Tensor) -> Tensor:
        sizes = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return run(steps, weight, None, *sizes)

    return convolve


_SUMS: dict[Any, Sums] = {
    nn.Linear: lambda layer, steps, weight: F.linear(steps, weight),
    nn.Conv1d: _convolve,
    nn.Conv2d: _convolve,
    nn.Conv3d: _convolve,
    nn.ConvTranspose1d: _transposed(F.conv_transpose1d),
    nn.ConvTranspose2d: _transposed(F.conv_transpose2d),
    nn.ConvTranspose3d: _transposed(F.conv_transpose3d),
}

SUMMING = frozenset(_SUMS)
"""Classes of float layers whose int8 layers sum products of integers."""


def _channels(kind: Any) -> int:
    """Dimension of the output channels in a weight."""
    return 1 if kind in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) else 0


class IntegerSums(PostProcess):
    """Gives a float layer the output of fbgemm's int8 layer.

    Called with the layer's float output, the layer and its input, as the hook does that :func:`use_integer_sums` puts
    in. The input is rounded to its grid, the weight to the weight's.

    Args:
        kind: class of the layer, without its activation: one of :data:`SUMMING`.
        weight: of the int8 layer; of its integers nothing is kept.
        given: grid of the input.
        grid: grid of the output.
        relu: the layer applies a ReLU itself.

    Buffers:
        scale: of the output, float32, 0-d.
        zero_point: of the output, int32, 0-d.
        input_scale: float32, 0-d.
        weight_scale: float32, 0-d or (output channels,).
        weight_zero_point: int32, shaped as ``weight_scale``.
    """

    input_scale: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, kind: Any, weight: QuantizedWeight, given: Grid, grid: Grid, *, relu: bool = False) -> None:
        super().__init__(grid)
        self.kind, self.relu = kind, relu
        self.register_buffer("input_scale", torch.tensor(given.scale, dtype=torch.float32))
        self.register_buffer("weight_scale", weight.scale.float())
        self.register_buffer("weight_zero_point", weight.zero_point.int())

    def forward(self, output: Tensor, layer: Any, input: Tensor) -> Tensor:
        """The int8 layer's output, dequantized.

        Args:
            output: what the float layer gave; only its shape and its gradient are used.
            layer: the layer.
            input: its input, float32 or float64.

        Raises:
            QdeqTypeError: the input is of another dtype, which cannot hold the values of a grid.

        """
        if input.dtype not in (torch.float32, torch.float64):
            remedy = 'Run it in float32, or rebuild the model with activations="fake_quant".'
            raise QdeqTypeError(expected("exact layer", "float32 or float64 input", str(input.dtype), remedy))
        with torch.no_grad():
            steps = torch.round(input.float() / self.input_scale)
            sums = _SUMS[self.kind](layer, steps.double(), self._integers(layer.weight).double())
            exact = self._requantize(sums, layer.bias).to(input.dtype)
        if not output.requires_grad:
            return exact
        low = int(self.zero_point) if self.relu else self.quant_min
        rounded = torch.fake_quantize_per_tensor_affine(output, self.scale, self.zero_point, low, self.quant_max)
        return exact + (rounded - rounded.detach())

    def _integers(self, weight: Tensor) -> Tensor:
        """The int8 weight, less its zero point."""
        axis, dims = _channels(self.kind), weight.dim()
        scale, zero_point = _along(self.weight_scale, axis, dims), _along(self.weight_zero_point, axis, dims)
        return torch.clamp(torch.round(weight.float() / scale), -128 - zero_point, 127 - zero_point)

    def _requantize(self, sums: Tensor, bias: Tensor | None) -> Tensor:
        """Exact sums to values on the grid of the output, by the formulas at the head of this file."""
        channels = sums.dim() - 1 if self.kind is nn.Linear else 1
        scale = _along(self.input_scale * self.weight_scale, channels, sums.dim())
        total = sums.float()
        if bias is not None:
            added = _along(bias.float(), channels, sums.dim())
            total = total + added / scale if scale.dim() else _multiply_add(added, 1 / scale.double(), total)
        steps = torch.round(total * (scale / self.scale))
        # Converting to int32 makes the smallest integer of what it cannot hold, in either direction.
        steps = torch.where(steps < _INT32, steps, -math.inf)
        low = int(self.zero_point) if self.relu else self.quant_min
        integers = torch.clamp(steps + self.zero_point, low, self.quant_max)  # no -0.0, which no int8 value stands for
        values = (integers - self.zero_point) * self.scale
        return values.contiguous(memory_format=_FORMATS.get(sums.dim(), torch.contiguous_format))


class ExactInput(FakeQuantize):
    """Rounds as ``torch.quantize_per_tensor`` does with fbgemm: value / scale + zero point by a fused multiply-add.

    ``QuantizeAvx2`` in fbgemm's ``QuantUtilsAvx2.cc``; NaN becomes the highest value.
    """

    @classmethod
    def of(cls, rounding: FakeQuantize) -> ExactInput:
        """One with the grid of a FakeQuantize that adds the zero point first, whose buffers it shares."""
        made = cls.__new__(cls)
        made.__dict__.update(rounding.__dict__)
        return made

    def _steps(self, value: Tensor) -> Tensor:
        zero_point = self.zero_point.float()
        steps = torch.round(_multiply_add(value, 1 / self.scale, zero_point)) - zero_point
        return torch.nan_to_num(steps, nan=math.inf, posinf=math.inf, neginf=-math.inf)


def _along(value: Tensor, axis: int, dims: int) -> Tensor:
    """A value per channel in a shape that broadcasts along ``axis`` of ``dims`` dimensions."""
    return value if value.dim() == 0 else value.reshape([-1 if dim == axis else 1 for dim in range(dims)])


def _multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` rounded once, to float32, as the processor's fused instruction does.

    float64 holds the product; the sum is rounded to odd there, so that rounding it again to float32 gives what one
    rounding would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding
    to odd", 2008).
    """
    product, other = a.double() * b.float().double(), c.double()
    total = product + other
    part = total - product
    error = (product - (total - part)) + (other - part)
    even = total.view(torch.int64) & 1 == 0
    return torch.where((error.abs() > 0) & even, torch.nextafter(total, error * math.inf), total).float()


def use_integer_sums(
    layer: nn.Module,
    kind: Any,
    engine: str,
    weight: Callable[[], QuantizedWeight],
    given: Sequence[Grid | None],
    grid: Grid,
    *,
    relu: bool = False,
) -> str:
    """Let a float layer give what its int8 layer gives; a rounding that it has is replaced.

    Args:
        layer: changed in place: it gets a child ``activation_post_process`` and a forward hook.
        kind: its class, without its activation; one of :data:`SUMMING`.
        engine: that runs the int8 layer; empty where it is not known.
        weight: reads the weight of the int8 layer.
        given: grid of its input at each of its calls; None where it is not known.
        grid: grid of its output.
        relu: it applies a ReLU itself. One that stands behind it changes nothing, as zero is on every grid.

    Returns:
        Why it cannot be done, and then the layer is as it was; empty where it is.

    """
    if engine != "fbgemm":
        who = engine or "an engine that cannot be told here"
        return f"{who} runs it, and only the rounding of fbgemm is known exactly"
    if not given or given[0] is None or None in given:
        return "the grid of its input is not known"
    if any(other != given[0] for other in given):
        return "it runs on values of different scales, and one module holds one scale"
    read = weight()
    reason = _why_not_weight(kind, read)
    if not reason:
        remove(layer, PostProcess)
        install(layer, IntegerSums(kind, read, given[0], grid, relu=relu), recompute)
    return reason


def _why_not_weight(kind: Any, weight: QuantizedWeight) -> str:
    scale, integers = weight.scale.float(), weight.values().double()
    if not integers.numel():
        return "its weight is empty"
    if weight.dtype != "qint8" or not ((scale >= _SMALLEST) & (255 * scale).isfinite()).all():
        return f"its weight is {weight.dtype} with scales from {float(scale.min()):g} to {float(scale.max()):g}"
    steps = integers - _along(weight.zero_point.double(), weight.axis or 0, integers.dim())
    sizes = steps.abs().transpose(0, _channels(kind)).flatten(1).sum(1)
    if float(sizes.max()) * 255 >= _INT32:
        return "its sums may exceed 32 bits, where the int8 kernel wraps around"
    return ""
