"""A layer and the activation that its quantized form owned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BNReLU2d",
    "BNReLU3d",
    "ConvAdd2d",
    "ConvAddReLU2d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "Fused",
    "LinearLeakyReLU",
    "LinearReLU",
    "LinearTanh",
]


@dataclass
class Fused:
    """A rebuilt layer and the activation that its quantized form owned.

    Attributes:
        layer: the float layer, without the activation.
        activation: makes the float activation module.
        holder: subclass of the layer's class that applies the activation itself, with the same parameter names;
            used where no slot for the activation can be proven.
        slots: how many ``nn.Identity`` places fusing may have left behind the layer, at most.
        held_attributes: what the holder needs to apply the activation, such as its slope.

    """

    layer: nn.Module
    activation: Callable[[], nn.Module]
    holder: type[nn.Module]
    slots: int
    held_attributes: dict[str, Any] = field(default_factory=dict)

    def hold(self) -> nn.Module:
        """The layer with its activation in one module: the holder takes over the layer's state."""
        held = self.holder.__new__(self.holder)
        held.__dict__.update(self.layer.__dict__)
        held.__dict__.update(self.held_attributes)
        return held


class ConvReLU1d(nn.Conv1d):
    """``nn.Conv1d`` followed by ReLU in one module, with the parameter names of the Conv1d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class ConvReLU2d(nn.Conv2d):
    """``nn.Conv2d`` followed by ReLU in one module, with the parameter names of the Conv2d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class ConvReLU3d(nn.Conv3d):
    """``nn.Conv3d`` followed by ReLU in one module, with the parameter names of the Conv3d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class ConvAdd2d(nn.Conv2d):
    """``nn.Conv2d`` whose output a second input is added to, with the parameter names of the Conv2d alone."""

    def forward(self, input: Tensor, extra_input: Tensor) -> Tensor:  # type: ignore[override] # as the fused module's
        """Apply the layer to ``input`` and add ``extra_input``."""
        return super().forward(input) + extra_input


class ConvAddReLU2d(nn.Conv2d):
    """``nn.Conv2d``, a second input added to its output, ReLU; with the parameter names of the Conv2d alone."""

    def forward(self, input: Tensor, extra_input: Tensor) -> Tensor:  # type: ignore[override] # as the fused module's
        """Apply the layer to ``input``, add ``extra_input``, then ReLU."""
        return F.relu(super().forward(input) + extra_input)


class LinearReLU(nn.Linear):
    """``nn.Linear`` followed by ReLU in one module, with the parameter names of the Linear alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class LinearLeakyReLU(nn.Linear):
    """``nn.Linear`` followed by LeakyReLU in one module, with the parameter names of the Linear alone.

    Attributes:
        negative_slope: slope of the activation below zero.

    """

    negative_slope: float

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then LeakyReLU."""
        return F.leaky_relu(super().forward(input), self.negative_slope)


class LinearTanh(nn.Linear):
    """``nn.Linear`` followed by tanh in one module, with the parameter names of the Linear alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then tanh."""
        return torch.tanh(super().forward(input))


class BNReLU2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` followed by ReLU in one module, with the parameter names of the BatchNorm2d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))


class BNReLU3d(nn.BatchNorm3d):
    """``nn.BatchNorm3d`` followed by ReLU in one module, with the parameter names of the BatchNorm3d alone."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(input))
