"""What is known of a source, and of the place it is written to."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqError
from qdeq.weights.dequant import unpack_source
from qdeq.weights.weight import QuantizedWeight

__all__ = ["declared_tensor", "is_float_tensor", "shape_of", "weight_details"]


def shape_of(source: Any, where: str) -> tuple[int, ...] | None:
    """The shape of a source, None where it cannot be unpacked."""
    try:
        return tuple(unpack_source(source, where=where).shape)
    except QdeqError:
        return None


def is_float_tensor(source: Any) -> bool:
    """Whether a source is a tensor of plain floating-point values."""
    return isinstance(source, Tensor) and source.is_floating_point()


def declared_tensor(target: nn.Module, name: str) -> Tensor:
    """The parameter or buffer ``name`` of a new module, as its class laid it out."""
    parameter = target._parameters.get(name)
    declared = target._buffers.get(name) if parameter is None else parameter
    if declared is None:
        raise AttributeError(f"{type(target).__name__} has no parameter or buffer {name!r}")
    return declared


def weight_details(weight: QuantizedWeight) -> dict[str, Any]:
    """What a :class:`qdeq.ReportEntry` says about the integers, scales and zero points of a weight."""
    return {
        "dtype": weight.dtype,
        "qscheme": weight.qscheme,
        "scale_min": float(weight.scale.min()) if weight.scale.numel() else None,
        "scale_max": float(weight.scale.max()) if weight.scale.numel() else None,
        "zero_point_min": float(weight.zero_point.min()) if weight.zero_point.numel() else None,
        "zero_point_max": float(weight.zero_point.max()) if weight.zero_point.numel() else None,
        "saturated_share": weight.saturated_share(),
    }
