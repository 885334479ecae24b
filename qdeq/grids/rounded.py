"""What the roundings of activations need to know of a converted layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from qdeq.grids.grid import Output
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Rounded"]


@dataclass(frozen=True, eq=False)
class Rounded:
    """A quantized layer and what stands for it in the rebuilt model.

    Attributes:
        path: its dotted path.
        source_class: its class in the source.
        output: how it rounds its output; None for a float output.
        module: its float module.
        carrier: what gives its output: the module, or the activation or BatchNorm that was fused into it.
        dynamic: it quantizes its input anew at every call.
        dequantizes: it gives float values.
        registered: a builder of the user's own made the module; how the source rounds is not known.
        kind: class of the float module, without its activation.
        relu: the module applies a ReLU of its own.
        weight: reads its quantized weight; None where it has not exactly one.

    """

    path: str
    source_class: str
    output: Output | None
    module: nn.Module
    carrier: nn.Module
    dynamic: bool
    dequantizes: bool
    registered: bool
    kind: Callable[..., nn.Module]
    relu: bool
    weight: Callable[[], QuantizedWeight] | None
