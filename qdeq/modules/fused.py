"""A layer and the activation that its quantized form owned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

__all__ = ["Fused"]


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
