"""The integers of each weight of an int8 model, by the name that the float model has for it, in the orders of ONNX."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from qdeq.layers.layer import Layer
from qdeq.layers.make import part_value
from qdeq.report import Report, ReportEntry
from qdeq.weights.dequant import unpack_source
from qdeq.weights.integer_types import FLOAT_QPARAMS
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Integers", "integers_of", "recurrent_weights"]

# The gates of torch in the order in which ONNX has them: i, f, g, o to i, o, f, g and r, z, n to z, r, n.
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN_TANH": (0,), "RNN_RELU": (0,)}
_TYPES = {"qint8": np.int8, "quint8": np.uint8, "qint32": np.int32}


@dataclass(frozen=True, eq=False)
class Integers:
    """A weight as DequantizeLinear takes it.

    Attributes:
        names: of the parameters that it holds, in the float model.
        change: what was done to the order of the values, in words; empty for nothing.
        values: int8, uint8 or int32.
        scale: float32, 0-d or 1-d.
        zero_point: of the type of ``values`` and the shape of ``scale``.
        axis: dimension of the channels; None per tensor.

    """

    names: tuple[str, ...]
    change: str
    values: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int | None

    def floats(self) -> np.ndarray:
        """What DequantizeLinear makes of them: float32, one subtraction and one product."""
        shape = [-1 if dim == self.axis else 1 for dim in range(self.values.ndim)]
        zero, scale = (array if self.axis is None else array.reshape(shape) for array in (self.zero_point, self.scale))
        with np.errstate(over="ignore", invalid="ignore"):
            floats: np.ndarray = (self.values.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale
        return floats

    def transposed(self) -> Integers:
        """Of a matrix."""
        axis = None if self.axis is None else 1 - self.axis
        return replace(self, change="transposed", values=np.ascontiguousarray(self.values.T), axis=axis)

    def rows(self, order: np.ndarray) -> Integers:
        """With its rows in another order."""
        scale, zero = self.scale, self.zero_point
        if self.axis == 0:
            scale, zero = scale[order], zero[order]
        return replace(self, values=self.values[order], scale=scale, zero_point=zero)


def integers_of(layers: Sequence[Layer], report: Report) -> tuple[dict[str, Integers], dict[str, str]]:
    """The integers of every parameter that was dequantized.

    Args:
        layers: as the form of the model describes them.
        report: of the rebuilt model: which source became which parameter.

    Returns:
        Parameter -> integers, and parameter -> why ONNX has no such integers.

    """
    sources = {source.name: source for layer in layers for part in layer.parts for source in part.sources}
    wanted: dict[str, list[ReportEntry]] = {}
    for entry in report.entries:
        if entry.qscheme is not None:
            wanted.setdefault(entry.target, []).append(entry)
    found, refused = {}, {}
    for target, entries in wanted.items():
        weights = [unpack_source(part_value(sources[entry.source]), where=entry.source) for entry in entries]
        why = next((why for weight in weights if (why := _why_not(weight))), "")
        if why:
            refused[target] = why
        else:
            found[target] = _below(
                [_integers(target, weight, entry.shape) for weight, entry in zip(weights, entries, strict=True)]
            )
    return found, refused


def _why_not(weight: QuantizedWeight) -> str:
    if weight.qscheme == FLOAT_QPARAMS:
        return "its zero points are fractions, and those of ONNX are integers"
    if weight.dtype not in _TYPES:
        return f"{weight.dtype} is no type of weights that QuantizeLinear is written with here"
    return ""


def _integers(name: str, weight: QuantizedWeight, shape: tuple[int, ...]) -> Integers:
    """A weight in the shape of its parameter: a packed Conv1d is stored as a Conv2d of height 1."""
    kind = _TYPES[weight.dtype]
    values = weight.values().contiguous().numpy().reshape(shape)
    scale, zero = weight.scale.float().numpy(), weight.zero_point.numpy().astype(kind)
    return Integers((name,), "", values, scale, zero, weight.axis)


def _below(parts: list[Integers]) -> Integers:
    """Several of them, one below the other, as one: scales by rows where they differ."""
    if len(parts) == 1:
        return parts[0]
    values = np.concatenate([part.values for part in parts])
    grids = {(part.axis, part.scale.tobytes(), part.zero_point.tobytes()) for part in parts}
    if len(grids) == 1 and parts[0].axis is None:
        return replace(parts[0], values=values)
    spread = [part if part.axis == 0 else _by_rows(part) for part in parts]
    scale = np.concatenate([part.scale for part in spread])
    zero = np.concatenate([part.zero_point for part in spread])
    return replace(parts[0], values=values, scale=scale, zero_point=zero, axis=0)


def _by_rows(part: Integers) -> Integers:
    rows = len(part.values)
    return replace(part, scale=np.repeat(part.scale, rows), zero_point=np.repeat(part.zero_point, rows), axis=0)


def recurrent_weights(model: nn.Module, found: dict[str, Integers]) -> Iterator[tuple[Integers, ...]]:
    """The weights of recurrent layers as ONNX has them: gates in its order, the directions side by side.

    Yields:
        The parts of a weight along its first dimension: one, or one for each direction where their scales have no
        axis in common.

    """
    for path, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            mode, directions = module.mode, ("", "_reverse") if module.bidirectional else ("",)
            stems = [f"weight_{kind}_l{number}" for number in range(module.num_layers) for kind in ("ih", "hh")]
        elif isinstance(module, nn.LSTMCell | nn.GRUCell | nn.RNNCell):
            mode = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(module), "RNN_TANH")
            directions, stems = ("",), ["weight_ih", "weight_hh"]
        else:
            continue
        for stem in stems:
            parts = [found.get(f"{path}.{stem}{end}" if path else f"{stem}{end}") for end in directions]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                yield from _stacked([_reordered(part, mode) for part in known])


def _reordered(part: Integers, mode: str) -> Integers:
    gates = _GATES[mode]
    rows = torch.arange(len(part.values)).view(len(gates), -1)[list(gates)].flatten().numpy()
    return part.rows(rows)


def _stacked(parts: list[Integers]) -> Iterator[tuple[Integers, ...]]:
    change = "gates in the order of ONNX"
    if len(parts) > 1 and all(part.axis is None for part in parts):
        names = tuple(name for part in parts for name in part.names)
        values, scale, zero = (np.stack([getattr(p, n) for p in parts]) for n in ("values", "scale", "zero_point"))
        yield (Integers(names, f"{change}, both directions in one", values, scale, zero, 0),)
    else:
        yield tuple(
            replace(part, change=change, values=part.values[None], axis=None if part.axis is None else 1)
            for part in parts
        )
