"""Plans of state dicts and opened files: the one way from their keys to float names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.state_dicts.attention import keeps_projections
from qdeq.state_dicts.lost import doubts
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Cell, Packed, Plan
from qdeq.state_dicts.rnn import rnn_shapes_of
from qdeq.state_dicts.values import as_weight, shape_of
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights import packed
from qdeq.weights.checks import describe
from qdeq.weights.integer_types import scheme_of
from qdeq.weights.packed_state import CELL, cell_parts, linear_parts, packed_class, packed_kind
from qdeq.weights.weight import QuantizedWeight

__all__ = ["plan_state"]


def plan_state(where: str, sd: Mapping[str, Any], like: nn.Module | None = None) -> Plan:
    """Give everything in a state dict or an opened file its float name.

    Args:
        where: argument, for errors.
        sd: a state dict, nested ones (names joined by dots), or a file, whose tensors are mapped.
        like: the float model, where it is known: it tells what keys do not.

    Returns:
        A plan whose targets hold tensors and quantized weights; the numbers of its activations may be tensors.

    Raises:
        QdeqTypeError: packed parameters of an unknown class.
        QdeqValueError: keys that cannot be understood, or a damaged tensor.

    """
    if isinstance(sd, WeightFile):
        return sd.plan_for(like)
    sources = _sources(where, sd)
    plan = plan_names(where, sources, shape_of, rnn_shapes_of(like), attentions=not keeps_projections(like))
    plan.doubtful = doubts(plan, _stride, {})
    return plan


def _stride(value: Tensor | QuantizedWeight) -> tuple[tuple[int, ...], str | None]:
    if isinstance(value, QuantizedWeight):
        return value.int_repr.stride(), value.qscheme
    return value.stride(), scheme_of(value) if value.is_quantized else None


def _sources(where: str, sd: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for key, value in sd.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            sources.update(_sources(where, value, f"{name}."))
        else:
            sources[name] = _source(f"{where}: {name}", name, value)
    return sources


def _source(where: str, name: str, value: Any) -> Any:
    """What :func:`qdeq.state_dicts.naming.plan_names` takes: tensors, pairs and cells; packed objects are unpacked."""
    if isinstance(value, tuple | list) and name.endswith("_packed_params._packed_params"):
        parts = linear_parts(value)
        if parts is None or not isinstance(parts[0], Tensor):
            remedy = "The checkpoint is damaged."
            raise QdeqValueError(expected(where, "a weight and a bias", describe(value), remedy))
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
    if weight is obj:
        try:
            weight = packed.unpack_packed(obj, where=where)
        except QdeqTypeError:  # float16 values, no integers
            weight = packed.dequantize_packed(obj, where=where)
    return Packed(as_weight(where, weight), bias)
