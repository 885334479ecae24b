"""Whether an operation that works value by value gives the int8 model's values, tried on all that it can meet.

A quint8 value is one of 256, a pair one of 65536: torch's int8 kernel and the float operation with its rounding run on
all of them. The kernels have a loop for whole vectors and one for what is left over, which round differently (the first
with fused multiply-adds), so both are run: on values side by side, and on every second one of a tensor. Where all
agree, an output is right wherever in a tensor it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.grids.grid import Grid
from qdeq.grids.modules import FakeQuantize
from qdeq.grids.rules import COPIES, VALUE_BY_VALUE, Site, operation_key

__all__ = ["TRIED", "Trial", "why_not_exact", "why_not_proven"]

_VALUES = 256
_FLOAT = "imitated in float arithmetic, which can give the step beside"
_AVERAGE = (
    "an average halfway between two steps goes to one or the other by where in a tensor it lies; others are right"
)
_KERNELS = {("add", False): "add", ("add", True): "add_relu", ("mul", False): "mul", ("mul", True): "mul_relu"}

# Layers that are one operation on each value: how torch runs them on a quantized tensor, for a scale and a zero point.
TRIED: dict[Any, Callable[[Any, Tensor, float, int], Tensor]] = {
    nn.Hardswish: lambda layer, x, *grid: torch.ops.quantized.hardswish(x, *grid),
    nn.ELU: lambda layer, x, *grid: torch.ops.quantized.elu(x, *grid, layer.alpha),
    nn.LeakyReLU: lambda layer, x, *grid: torch.ops.quantized.leaky_relu(x, layer.negative_slope, False, *grid),
    nn.Sigmoid: lambda layer, x, *grid: torch.ops.quantized.sigmoid(x, *grid),
}


@dataclass(frozen=True)
class Trial:
    """An operation on one or two quantized values.

    Attributes:
        given: grids of its inputs.
        int8: the kernel: quantized tensors of one dimension in, one out.
        imitation: what the rebuilt model does: their float values in, float values out.

    """

    given: tuple[Grid, ...]
    int8: Callable[..., Tensor]
    imitation: Callable[..., Tensor]


def why_not_exact(site: Site, layer: nn.Module | None = None) -> str:
    """Why an operation may give another value than the int8 model's; empty where it gives all of them.

    Args:
        site: the operation.
        layer: that it is; None for a function, and for a module that torch runs on quantized tensors as it is.

    """
    try:
        trials = _trials(site, layer)
        if trials is None:
            return _AVERAGE if site.ties else _FLOAT
        return next((reason for reason in map(why_not_proven, trials) if reason), "")
    except Exception as error:  # noqa: BLE001 (the user's operation, alone and on a tensor of one dimension)
        return f"{_FLOAT}; it cannot be tried alone ({type(error).__name__})"


def why_not_proven(trial: Trial) -> str:
    """Empty where the imitation gives what the int8 kernel gives for every value of the inputs."""
    if any((grid.quant_min, grid.quant_max) != (0, _VALUES - 1) for grid in trial.given):
        return _FLOAT
    grids = len(trial.given)
    columns = torch.cartesian_prod(*[torch.arange(_VALUES, dtype=torch.uint8)] * grids).reshape(-1, grids).unbind(1)
    missed = torch.zeros(len(columns[0]), dtype=torch.bool)
    with torch.no_grad():
        for spread in (False, True):
            values = [_quantized(column, grid, spread) for column, grid in zip(columns, trial.given, strict=True)]
            imitated = trial.imitation(*[value.dequantize() for value in values])
            missed |= trial.int8(*values).dequantize() != imitated
    count = int(missed.sum())
    what = "values" if grids == 1 else "pairs of values"
    return f"torch's kernel gives the step beside for {count} of {len(missed)} {what}" if count else ""


def _quantized(integers: Tensor, grid: Grid, spread: bool) -> Tensor:
    side_by_side = torch.stack([integers, integers], 1) if spread else integers.contiguous()
    values: Tensor = torch._make_per_tensor_quantized_tensor(side_by_side, grid.scale, grid.zero_point)
    return values[:, 0] if spread else values


def _trials(site: Site, layer: nn.Module | None) -> list[Trial] | None:
    """What to try of an operation; None where trying shows nothing."""
    key, given, run = operation_key(site.operation), site.given, site.replay
    rounded = FakeQuantize(site.grid, ties=site.ties)
    grid = site.grid.scale, site.grid.zero_point
    if run is None or not given:
        return None
    if type(layer) in TRIED:
        kernel = TRIED[type(layer)]
        return [Trial(given, lambda x: kernel(layer, x, *grid), lambda x: rounded(run(x)))]
    if key in COPIES:
        return []
    if key in ("cat", "concat"):
        return [
            trial for one in dict.fromkeys(given) if one != site.grid for trial in _concatenations(one, rounded, grid)
        ]
    if (key, site.relu) in _KERNELS and len(given) == 2:
        add_or_mul = getattr(torch.ops.quantized, _KERNELS[key, site.relu])
        return [Trial(given, lambda x, y: add_or_mul(x, y, *grid), lambda x, y: rounded(_relu(run(x, y), site.relu)))]
    if key in ("add", "mul") and len(given) == 1 and not site.relu:
        return [_with_number(key, site, run, rounded)]
    if key in VALUE_BY_VALUE and len(given) == 1:
        return [Trial(given, run, lambda x: rounded(run(x)))]
    return None


def _relu(value: Tensor, applied: bool) -> Tensor:
    return torch.relu(value) if applied else value


def _with_number(key: str, site: Site, run: Callable[..., Any], rounded: FakeQuantize) -> Trial:
    neutral = torch.full((), 0.0 if key == "add" else 1.0, dtype=torch.float64)
    number, kernel = float(run(neutral)), getattr(torch.ops.quantized, f"{key}_scalar")
    constant = site.constant
    return Trial(
        site.given,
        lambda x: kernel(x, number),
        lambda x: rounded(run(x) if constant is None else x + constant),
    )


def _concatenations(given: Grid, rounded: FakeQuantize, grid: tuple[float, int]) -> Iterator[Trial]:
    """Of one input: torch has a kernel for channels_last, and one for the rest."""

    def channels_last(x: Tensor) -> Tensor:
        image = x.reshape(1, -1, 2, 2).contiguous(memory_format=torch.channels_last)
        joined: Tensor = torch.ops.quantized.cat([image], 1, *grid)
        return joined.contiguous().reshape(-1)

    yield Trial((given,), lambda x: torch.ops.quantized.cat([x], 0, *grid), rounded)
    yield Trial((given,), channels_last, rounded)
