"""Layers that apply their activation or batch norm themselves, with the parameter names of the layer alone.

They stand where no place for it can be proven. A batch norm is the child ``bn``, as in torch's prepared models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BNReLU2d",
    "BNReLU3d",
    "ConvAdd2d",
    "ConvAddReLU2d",
    "ConvBn1d",
    "ConvBn2d",
    "ConvBn3d",
    "ConvBnReLU1d",
    "ConvBnReLU2d",
    "ConvBnReLU3d",
    "ConvReLU1d",
    "ConvReLU2d",
    "ConvReLU3d",
    "LinearBn1d",
    "LinearLeakyReLU",
    "LinearReLU",
    "LinearTanh",
]


class _ThenReLU:
    """ReLU after the forward of the class behind this one."""

    def forward(self, *inputs: Any) -> Tensor:
        """Apply the layer, then ReLU."""
        return F.relu(super().forward(*inputs))  # type: ignore[misc] # the class behind has it


class ConvReLU1d(_ThenReLU, nn.Conv1d):
    """``nn.Conv1d`` followed by ReLU."""


class ConvReLU2d(_ThenReLU, nn.Conv2d):
    """``nn.Conv2d`` followed by ReLU."""


class ConvReLU3d(_ThenReLU, nn.Conv3d):
    """``nn.Conv3d`` followed by ReLU."""


class _ThenNorm:
    """The batch norm ``bn`` after the forward of the class behind this one.

    Args:
        norm: (name, value) of the arguments of the batch norm, without its number of features.
        args: arguments of the layer.

    """

    norm_kind: type[nn.Module]

    def __init__(self, *, norm: tuple[tuple[str, Any], ...] = (), **args: Any) -> None:
        super().__init__(**args)
        channels = args["out_features"] if "out_features" in args else args["out_channels"]
        self.bn = self.norm_kind(channels, device=args.get("device"), **dict(norm))

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then the batch norm."""
        normed: Tensor = self.bn(super().forward(input))  # type: ignore[misc] # the class behind has it
        return normed


class ConvBn1d(_ThenNorm, nn.Conv1d):
    """``nn.Conv1d`` followed by ``nn.BatchNorm1d``."""

    norm_kind = nn.BatchNorm1d


class ConvBn2d(_ThenNorm, nn.Conv2d):
    """``nn.Conv2d`` followed by ``nn.BatchNorm2d``."""

    norm_kind = nn.BatchNorm2d


class ConvBn3d(_ThenNorm, nn.Conv3d):
    """``nn.Conv3d`` followed by ``nn.BatchNorm3d``."""

    norm_kind = nn.BatchNorm3d


class LinearBn1d(_ThenNorm, nn.Linear):
    """``nn.Linear`` followed by ``nn.BatchNorm1d``."""

    norm_kind = nn.BatchNorm1d


class ConvBnReLU1d(_ThenReLU, ConvBn1d):
    """``nn.Conv1d`` followed by ``nn.BatchNorm1d`` and ReLU."""


class ConvBnReLU2d(_ThenReLU, ConvBn2d):
    """``nn.Conv2d`` followed by ``nn.BatchNorm2d`` and ReLU."""


class ConvBnReLU3d(_ThenReLU, ConvBn3d):
    """``nn.Conv3d`` followed by ``nn.BatchNorm3d`` and ReLU."""


class ConvAdd2d(nn.Conv2d):
    """``nn.Conv2d`` whose output a second input is added to."""

    def forward(self, input: Tensor, extra_input: Tensor) -> Tensor:  # type: ignore[override] # as the fused module's
        """Apply the layer to ``input`` and add ``extra_input``."""
        return super().forward(input) + extra_input


class ConvAddReLU2d(_ThenReLU, ConvAdd2d):
    """``nn.Conv2d``, a second input added to its output, ReLU."""


class LinearReLU(_ThenReLU, nn.Linear):
    """``nn.Linear`` followed by ReLU."""


class LinearLeakyReLU(nn.Linear):
    """``nn.Linear`` followed by LeakyReLU, whose slope below zero is ``negative_slope``."""

    negative_slope: float

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then LeakyReLU."""
        return F.leaky_relu(super().forward(input), self.negative_slope)


class LinearTanh(nn.Linear):
    """``nn.Linear`` followed by tanh."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer, then tanh."""
        return torch.tanh(super().forward(input))


class BNReLU2d(_ThenReLU, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` followed by ReLU."""


class BNReLU3d(_ThenReLU, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` followed by ReLU."""
