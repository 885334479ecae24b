"""Takes a live packed weight apart, so that all others need to know only :class:`Packed`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qdeq.errors import QdeqValueError
from qdeq.layers.layer import Later
from qdeq.sources.graph.program import Packed
from qdeq.weights.direct_conv import ConvGeometry, lost_weight, recover_weight
from qdeq.weights.packed import engine_of, is_direct_conv, open_packed, packed_shape
from qdeq.weights.packed_state import CONV2D, CONV3D, packed_kind
from qdeq.weights.weight import QuantizedWeight

__all__ = ["shape_of", "take_apart"]


def take_apart(value: Any, held: str, *, half: bool = False, recover_direct_conv: bool = False) -> Packed:
    """What a packed weight holds.

    Args:
        value: live, or apart already.
        held: dotted name under which the source holds it.
        half: its operator computes with float16 where it holds no integers.
        recover_direct_conv: as for :func:`qdeq.dequantize_model`.

    Raises:
        QdeqError: torch cannot give the weight back.

    """
    if isinstance(value, Packed):
        value.held = value.held or held
        return value
    kind = packed_kind(value)
    readable, bias = open_packed(value, where=held)
    packed = Packed(kind, readable, bias, held=held, engine=engine_of(value))
    if half:
        packed.weight = Later(lambda: value.unpack()[0].half())
    if kind in (CONV2D, CONV3D):
        geometry = ConvGeometry.of_packed(value)
        packed.transpose, packed.groups = geometry.transposed, geometry.groups
        packed.stride, packed.padding, packed.dilation = geometry.stride, geometry.padding, geometry.dilation
        packed.output_padding = tuple(value.output_padding())
        if is_direct_conv(value):
            if not recover_direct_conv:
                raise QdeqValueError(lost_weight(held))
            shape = packed_shape(value, where=held)
            packed.weight = Later(lambda: recover_weight(value, shape, where=held))
    return packed


def shape_of(packed: Packed) -> tuple[int, ...]:
    """The shape of the weight, as torch packs it: a 1-d convolution's has a height of 1."""
    weight = packed.weight.read() if isinstance(packed.weight, Later) else packed.weight
    if isinstance(weight, Tensor | QuantizedWeight):
        return tuple(weight.shape)
    return packed_shape(weight, where=packed.held)
