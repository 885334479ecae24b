"""What the roundings of activations need to know of a layer that was made."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from qdeq.grids.rounded import Rounded
from qdeq.layers.layer import Layer, Role
from qdeq.layers.make import Made, part_value
from qdeq.weights.dequant import unpack_source
from qdeq.weights.weight import QuantizedWeight

__all__ = ["rounded"]


def rounded(part: Made) -> Rounded:
    """What the roundings of activations need to know of a layer."""
    layer = part.layer
    activation = layer.activation
    holds_relu = activation is not None and activation.kind is nn.ReLU and type(part.module) is activation.holder
    return Rounded(
        layer.path,
        layer.source_class,
        layer.output,
        part.module,
        part.carrier,
        dynamic=layer.role is Role.DYNAMIC,
        dequantizes=layer.role is Role.DEQUANTIZE,
        registered=layer.made is not None,
        kind=layer.kind,
        relu=holds_relu,
        weight=_reader(layer),
    )


def _reader(layer: Layer) -> Callable[[], QuantizedWeight] | None:
    """What reads the weight of a layer that has one."""
    weights = [source for part in layer.parts if part.name == "weight" for source in part.sources]
    return (lambda: unpack_source(part_value(weights[0]), where=weights[0].name)) if len(weights) == 1 else None
