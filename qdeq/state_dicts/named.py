"""State dicts and opened files by float names: the plan of each, and its tensors with bias and scale of the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.layers.names import bias_name
from qdeq.state_dicts.lost import doubts
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Cell, Packed, Plan
from qdeq.state_dicts.records import BESIDE, OPTIMIZER, Entry, could_be_weight, is_optimizer, records_among
from qdeq.state_dicts.values import as_weight, shape_of, value_of
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights import packed
from qdeq.weights.checks import describe
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.integer_types import scheme_of
from qdeq.weights.packed_state import CELL, cell_parts, linear_parts, packed_class, packed_kind
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name, join

__all__ = ["NamedTensor", "named_tensors", "plan_state", "tensors_of"]


@dataclass(frozen=True, eq=False)
class NamedTensor:
    """A parameter or buffer of the float model that a state dict stands for.

    Attributes:
        path: dotted path of its module.
        parameter: its name there.
        value: what it was saved as; parts that the float model keeps as one are put together.
        bias: the bias that belongs to it, if it is a weight and has one.
        output: scale and zero point of its module's quantized output; None where there is none.
        bias_step: where the bias is integers, too, as in ONNX: its scales, float64; None for a float one.

    """

    path: str
    parameter: str
    value: QuantizedWeight | Tensor
    bias: Tensor | None
    output: tuple[float, int] | None
    bias_step: Tensor | None = None

    @property
    def name(self) -> str:
        """Its dotted name."""
        return join(self.path, self.parameter)

    @property
    def bias_name(self) -> str:
        """The dotted name that its bias has, or would have."""
        return join(self.path, bias_name(self.parameter))


def named_tensors(where: str, sd: Mapping[str, Any]) -> Iterator[NamedTensor]:
    """Read a state dict or an opened file, one float name after the other; tensors are not copied where that can be.

    Args and errors are those of :func:`plan_state`.
    """
    return tensors_of(where, plan_state(where, sd))


def tensors_of(where: str, plan: Plan) -> Iterator[NamedTensor]:
    """Read what a plan names, one float name after the other; ``where`` is the argument, for errors."""
    for name, target in plan.targets.items():
        path, _, parameter = name.rpartition(".")
        bias = plan.targets.get(join(path, bias_name(parameter))) if "weight" in parameter else None
        shift = None if bias is None else value_of(f"{where}: {bias.source}", bias.value)
        step = shift.scale if isinstance(shift, QuantizedWeight) else None
        if isinstance(shift, QuantizedWeight):
            shift = dequantize_source(shift, where=f"{where}: {join(path, parameter)}")
        qparams = plan.activations.get(path)
        yield NamedTensor(
            path,
            parameter,
            value_of(f"{where}: {target.source}", target.value),
            shift.detach() if isinstance(shift, Tensor) else None,
            None if qparams is None else (float(qparams[0]), int(qparams[1])),
            step,
        )


def plan_state(where: str, sd: Mapping[str, Any], like: nn.Module | None = None) -> Plan:
    """Give everything in a state dict or an opened file its float name.

    Args:
        where: argument, for errors.
        sd: a state dict, nested ones (names joined by dots), or a file, whose tensors are mapped.
        like: the float model, where it is known: it tells what keys do not.

    Returns:
        A plan whose targets hold tensors and quantized weights; the numbers of its activations may be tensors. What a
        checkpoint holds beside weights is among its dropped sources.

    Raises:
        QdeqTypeError: packed parameters of an unknown class.
        QdeqValueError: keys that cannot be understood, or a damaged tensor.

    """
    if isinstance(sd, WeightFile):
        return sd.plan_for(like)
    walk = _Walk(where)
    walk.visit("", sd)
    plan = plan_names(where, walk.sources, shape_of, like)
    plan.dropped = {**walk.dropped, **plan.dropped}
    plan.doubtful = doubts(plan, _stride, {})
    return plan


def _stride(value: Any) -> tuple[tuple[int, ...], str | None]:
    if isinstance(value, QuantizedWeight):
        return value.int_repr.stride(), value.qscheme
    return value.stride(), scheme_of(value) if value.is_quantized else None


class _Walk:
    """Names joined by dots through nested mappings, without what is no weight."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.sources: dict[str, Any] = {}
        self.dropped: dict[str, str] = {}

    def visit(self, prefix: str, entries: Mapping[Any, Any]) -> bool:
        """Take all entries of a mapping; whether there is a weight among them."""
        if is_optimizer(entries):
            self.dropped[prefix.rstrip(".") or "optimizer"] = OPTIMIZER
            return False
        found = [self._entry(f"{prefix}{key}", str(key), value) for key, value in entries.items()]
        for record in records_among(found):
            name = f"{prefix}{record.name}"
            self.dropped.setdefault(name, BESIDE)
            below = [key for key in self.sources if key == name or key.startswith(f"{name}.")]
            for key in below:
                del self.sources[key]
        return any(entry.has_weight for entry in found)

    def _entry(self, name: str, key: str, value: Any) -> Entry:
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = dict(enumerate(value))  # such as the states of several optimizers
        if isinstance(value, Mapping):
            return Entry(key, True, self.visit(f"{name}.", value))
        source = self.sources[name] = _source(f"{self.where}: {name}", name, value)
        if isinstance(source, Tensor):
            return Entry(key, False, could_be_weight(source.shape, dtype_name(source.dtype)))
        return Entry(key, False, isinstance(source, Packed | Cell | QuantizedWeight))


def _source(where: str, name: str, value: Any) -> Any:
    """What :func:`qdeq.state_dicts.naming.plan_names` takes: tensors, pairs and cells; packed objects are unpacked."""
    if isinstance(value, tuple | list) and name.endswith("_packed_params._packed_params"):
        parts = linear_parts(value)
        if parts is None or not isinstance(parts[0], Tensor):
            refuse(where, "a weight and a bias", describe(value), "The checkpoint is damaged.")
        return Packed(*parts)
    if packed.is_packed_weight(value):
        return _opened(where, value)
    if not isinstance(value, torch.ScriptObject):
        return value
    cell = cell_parts(value.__getstate__()[0]) if packed_kind(value) == CELL else None  # type: ignore[attr-defined]
    if cell is None:
        remedy = "Dequantize the model instead: qdeq.dequantize_model."
        raise QdeqTypeError(expected(where, "packed parameters", str(packed_class(value)), remedy))
    return Cell(_opened(where, cell[0]), _opened(where, cell[1]))


def _opened(where: str, obj: Any) -> Packed:
    weight, bias = packed.open_packed(obj, where=where)
    bias = None if bias is None else bias.detach()
    if weight is obj:
        try:
            weight = packed.unpack_packed(obj, where=where)
        except QdeqTypeError:  # float16 values, no integers
            weight = packed.dequantize_packed(obj, where=where)
    return Packed(as_weight(where, weight), bias)
