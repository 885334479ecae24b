"""A layer of either side as a diagnosis sees it: the integers of the int8 one, the float weight of the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from qdeq.layers.batch_norm import NormValues
from qdeq.weights.weight import QuantizedWeight

__all__ = ["FloatLayer", "Int8Side", "IntegerLayer", "Integers", "PlainTensor", "stacked"]


@dataclass(frozen=True, eq=False)
class Integers:
    """A quantized weight with the channel axis first."""

    values: Tensor  # int8, uint8 or int32, (channels, weights per channel)
    scale: Tensor  # float64, (channels,)
    zero_point: Tensor  # float64, (channels,); whole numbers unless the qparams are float
    shape: tuple[int, ...]  # shape of the weight as its layer holds it
    axis: int  # where the channel axis is in ``shape``
    qscheme: str  # torch's name of the scheme; per tensor, all scales are equal
    full_range: tuple[int, int]  # smallest and largest value of the dtype

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Integers:
        """Bring a quantized weight into this form; contiguous integers with the channel axis first are not copied."""
        axis = weight.axis or 0
        values = weight.values().movedim(axis, 0)
        channels = values.shape[0]
        scale, zero_point = weight.scale.expand(channels), weight.zero_point.double().expand(channels)
        kind = weight.integers
        return cls(
            values.reshape(channels, -1), scale, zero_point, weight.shape, axis, weight.qscheme, (kind.low, kind.high)
        )

    @cached_property
    def in_use(self) -> tuple[int, int]:
        """Smallest and largest integer that occurs."""
        if not self.values.numel():
            return self.full_range
        low, high = torch.aminmax(self.values)
        return int(low), int(high)

    @property
    def per_channel(self) -> bool:
        """Whether each channel has a scale of its own."""
        return self.qscheme != "per_tensor_affine"

    def rows(self, index: slice | Tensor) -> Tensor:
        """Return the float32 weights of some channels, as ``dequantize()`` gives them."""
        values = self.values[index].contiguous()
        scale, zero_point = self.scale[index], self.zero_point[index]
        if not self.per_channel:
            scale, zero_point = self.scale[0], self.zero_point[0]
        part = QuantizedWeight(
            int_repr=values,
            scale=scale.clone(),
            zero_point=zero_point.float() if self.qscheme.endswith("float_qparams") else zero_point.long(),
            axis=0 if self.per_channel else None,
            qscheme=self.qscheme,
            dtype={torch.int8: "qint8", torch.uint8: "quint8", torch.int32: "qint32"}[values.dtype],
            shape=tuple(values.shape),
        )
        return part.dequantize(allow_bad_scales=True)

    def reference(self) -> Tensor:
        """Return the whole float32 weight in the layer's own shape."""
        moved = [self.shape[self.axis], *(size for i, size in enumerate(self.shape) if i != self.axis)]
        return self.rows(slice(None)).reshape(moved).movedim(0, self.axis)

    def as_rows(self, weight: Tensor) -> Tensor:
        """Return a float weight of the layer's shape as (channels, weights per channel), channel axis first."""
        return weight.movedim(self.axis, 0).reshape(self.values.shape)


class _Placed:
    """A weight by its dotted path: that of its module, or of the parameter where a module has several weights."""

    path: str
    parameter: str

    @property
    def module(self) -> str:
        """Dotted path of the module that holds the weight."""
        return self.path if self.parameter == "weight" else self.path.removesuffix(self.parameter).removesuffix(".")

    @property
    def alone(self) -> bool:
        """Whether the module has one weight, which makes it a layer that can be run by itself."""
        return self.parameter == "weight"


@dataclass(frozen=True, eq=False)
class IntegerLayer(_Placed):
    """A weight of the int8 side."""

    # Dotted path of its module; for a module of several weights that of the float parameter that this weight
    # becomes, such as ``lstm.weight_ih_l0``.
    path: str
    class_name: str  # class of its module; empty where the side is a state_dict
    ints: Integers  # its integers, one byte per weight of an 8-bit layer
    bias: Tensor | None  # float32 (channels,), or None
    output: tuple[float, int] | None = None  # scale and zero point of the module's output; None where it is not known
    parameter: str = "weight"  # name of the float parameter
    bias_step: Tensor | None = None  # scales of a bias that is rounded itself: one, or one for each channel

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.ints.shape

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, eq=False)
class FloatLayer(_Placed):
    """A weight and bias of the float side; the batch norm inside a module is folded in."""

    path: str  # as in :class:`IntegerLayer`
    class_name: str  # class of its module; empty where the side is a state_dict
    weight: Tensor  # two dimensions or more
    bias: Tensor | None  # (channels,), or None
    parameter: str = "weight"  # name of the weight
    # Smallest and largest integer that the recipe of a prepared layer allows; None where there is none.
    limits: tuple[int, int] | None = None
    transposed: bool | None = None  # the output channels are the second dimension; None where nothing tells
    norm: NormValues | None = (
        None  # batch norm that the layer applies itself, not folded in: the file does not hold eps
    )


@dataclass(frozen=True, eq=False)
class PlainTensor:
    """A parameter or buffer of the int8 side that is not quantized."""

    module: str  # dotted path of its module, or of the module that it becomes
    name: str  # its name there
    value: Tensor  # floating

    @property
    def path(self) -> str:
        """Dotted name."""
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True, eq=False)
class Int8Side:
    """What the int8 side holds."""

    layers: list[IntegerLayer] = field(default_factory=list)  # quantized weights, in the order of the side
    plain: list[PlainTensor] = field(default_factory=list)  # what is not quantized
    unread: dict[str, str] = field(default_factory=dict)  # dotted path -> why what is quantized there cannot be read
    float16: list[str] = field(default_factory=list)  # dotted paths of quantized modules whose weights are no integers
    registered: list[str] = field(default_factory=list)  # those that a registered builder reads
    # Of a state_dict or file: path of a module -> scale and zero point of its output, also of modules without weights.
    outputs: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def is_quantized(self) -> bool:
        """Whether the side holds any weight that was quantized."""
        return bool(self.layers or self.unread or self.float16 or self.registered)


def stacked(parts: list[Integers]) -> Integers:
    """Return quantized weights, one below the other, as one; all have their channel axis first.

    Per-tensor scales are rounded to float32, as their arithmetic does; per channel they then give the same bits.
    """
    if len(parts) == 1:
        return parts[0]
    scales = [part.scale if part.per_channel else part.scale.float().double() for part in parts]
    rows = sum(part.shape[0] for part in parts)
    return Integers(
        torch.cat([part.values for part in parts]),
        torch.cat(scales),
        torch.cat([part.zero_point for part in parts]),
        (rows, *parts[0].shape[1:]),
        0,
        "per_channel_affine",
        parts[0].full_range,
    )
