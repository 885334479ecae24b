"""A quantized state dict to the float state dict it stands for, and into a float model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.state_dicts.attention import keeps_projections
from qdeq.state_dicts.folding import fold_parts
from qdeq.state_dicts.loading import load
from qdeq.state_dicts.matching import Match, match
from qdeq.state_dicts.naming import plan_names
from qdeq.state_dicts.parts import Cell, Fold, Packed, Plan, Stack, Target
from qdeq.state_dicts.rnn import rnn_shapes_of
from qdeq.state_dicts.stacking import stack_weights
from qdeq.weights import packed
from qdeq.weights.checks import describe
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.direct_conv import saved_weight_doubt
from qdeq.weights.packed_state import CELL, cell_parts, linear_parts, packed_class, packed_kind
from qdeq.weights.weight import QuantizedWeight, weight_from_tensor
from qdeq.weights.weight_file import WeightFile

__all__ = ["dequantize_state_dict"]

_WHERE = "dequantize_state_dict"


def dequantize_state_dict(
    sd: Mapping[str, Any],
    *,
    into: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
) -> tuple[dict[str, Tensor], Report]:
    """Turn the state dict of a quantized model into that of the float model it stands for.

    Takes what torch's quantized modules save: eager static and dynamic, linear versions 1 to 3, with or without
    ``_metadata``, functional weights of FX graphs, RNNs, embeddings, prepared (QAT) models; also an archive from
    :func:`qdeq.open`, and nested dicts of these (names joined by dots).

    Args:
        sd: the state dict; it is not changed, and nothing in the result shares its memory.
        into: a float model to load: every parameter must be written and every source tensor used. It may still have
            the batch norms that were folded into the weights: they become exact identities. It is unchanged
            on an error.
        dtype: of dequantized weights and biases: float32, bfloat16 or float16. Other float tensors keep theirs while
            it is float32.
        strict: with ``into``, raise if a source is unused or a parameter is not written; otherwise the report says so.

    Returns:
        The float state dict, under the names of ``into`` if that is given, and the report. The scale and zero point of
        each quantized output are in ``report.activation_qparams``.

    Raises:
        QdeqTypeError: ``sd`` is no mapping or ``into`` no module.
        QdeqValueError: keys that cannot be understood, a damaged tensor, or a state dict that does not fit ``into``.

    """
    if not isinstance(sd, Mapping):
        remedy = "Pass model.state_dict() or qdeq.open(path); for a model see qdeq.dequantize_model."
        raise QdeqTypeError(expected(f"{_WHERE}: sd", "a state dict", describe(sd), remedy))
    if into is not None and not isinstance(into, nn.Module):
        raise QdeqTypeError(expected(f"{_WHERE}: into", "a float nn.Module", describe(into), "Pass the model to load."))
    shapes, attentions = rnn_shapes_of(into), not keeps_projections(into)
    plan = plan_names(_WHERE, _sources(sd), _shape_of, shapes, attentions=attentions)
    if not plan.targets:
        remedy = "Pass the state dict of a quantized model."
        raise QdeqValueError(expected(f"{_WHERE}: sd", "at least one tensor", f"{len(sd)} entries", remedy))
    report = Report(activation_qparams={n: (float(s), int(z)) for n, (s, z) in plan.activations.items()})
    doubtful = _doubtful(plan)
    if isinstance(sd, WeightFile):  # it knows more than its weights
        report.activation_qparams |= sd.activation_qparams
        plan.constants |= sd.constants
        plan.dropped |= sd.dropped
        doubtful = sd.doubtful
    report.dropped.extend(DroppedSource(source, reason) for source, reason in plan.dropped.items())
    if into is None:
        matches = [Match(name, name, "", "Tensor") for name in plan.targets]
        for name, why in doubtful.items():
            report.note(name, why)
    else:
        matches = match(plan, into, report, _shape_of, doubtful, strict=strict)
    tensors = {name: _value(name, target, dtype) for name, target in plan.targets.items()}
    _fill_report(report, plan, matches)
    for text in sd.unchecked if isinstance(sd, WeightFile) else ():
        report.note("", text)
    if into is None:
        return tensors, report
    return load(into, matches, tensors), report


def _sources(sd: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    sources: dict[str, Any] = {}
    for key, value in sd.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            sources.update(_sources(value, f"{name}."))
        else:
            sources[name] = _source(name, value)
    return sources


def _source(name: str, value: Any) -> Any:
    """What :func:`qdeq.state_dicts.naming.plan_names` takes: tensors, pairs and cells; packed objects are unpacked."""
    if isinstance(value, tuple | list) and name.endswith("_packed_params._packed_params"):
        parts = linear_parts(value)
        if parts is None or not isinstance(parts[0], Tensor):
            remedy = "The checkpoint is damaged."
            raise QdeqValueError(expected(f"{_WHERE}: {name}", "a weight and a bias", describe(value), remedy))
        return Packed(*parts)
    if packed.is_packed_weight(value):
        return Packed(_unpack(name, value), packed.packed_bias(value))
    if not isinstance(value, torch.ScriptObject):
        return value
    cell = cell_parts(value.__getstate__()[0]) if packed_kind(value) == CELL else None  # type: ignore[attr-defined]
    if cell is None:
        remedy = "Dequantize the model instead: qdeq.dequantize_model."
        raise QdeqTypeError(expected(f"{_WHERE}: {name}", "packed parameters", str(packed_class(value)), remedy))
    ih, hh = (Packed(_unpack(name, part), packed.packed_bias(part)) for part in cell)
    return Cell(ih, hh)


def _unpack(name: str, value: Any) -> QuantizedWeight | Tensor:
    where = f"{_WHERE}: {name}"
    try:
        return packed.unpack_packed(value, where=where)
    except QdeqTypeError:  # float16 values, no integers
        return packed.dequantize_packed(value, where=where)


def _shape_of(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor | QuantizedWeight) else None


def _doubtful(plan: Plan) -> dict[str, str]:
    """Weights that may be uninitialized memory."""
    found = {}
    for name, target in plan.targets.items():
        if isinstance(target.value, Tensor | QuantizedWeight):
            value = _plain_or_weight(f"{_WHERE}: {target.source}", target.value)
            scheme = value.qscheme if isinstance(value, QuantizedWeight) else None
            stride = value.int_repr.stride() if isinstance(value, QuantizedWeight) else value.stride()
            why = saved_weight_doubt(value.shape, stride, scheme, None)
            if why:
                found[name] = why
    return found


def _value(name: str, target: Target, dtype: torch.dtype) -> Tensor:
    where = f"{_WHERE}: {target.source}"
    value: Any = target.value
    if isinstance(value, Fold):
        return fold_parts(where, value.part, *value.parts).detach().to(dtype)
    if isinstance(value, Stack):
        value = stack_weights(where, [_plain_or_weight(where, part) for part in value.parts])
    if isinstance(value, QuantizedWeight) or value.is_quantized:
        return dequantize_source(value, where=where, dtype=dtype)
    plain: Tensor = value.detach()
    keeps = not plain.is_floating_point() or dtype == torch.float32
    if keeps and name.rsplit(".", 1)[-1].startswith("bias") and plain.dtype == torch.float64:
        keeps = False  # a packed bias is float32 wherever it is used
    return plain.clone() if keeps else plain.to(dtype, copy=True)


def _plain_or_weight(where: str, value: Any) -> QuantizedWeight | Tensor:
    return weight_from_tensor(value, where) if isinstance(value, Tensor) and value.is_quantized else value


def _fill_report(report: Report, plan: Plan, matches: list[Match]) -> None:
    for found in matches:
        target = plan.targets.get(found.source)
        if target is None:
            continue
        note = "; ".join(text for text in (target.note, found.how) if text)
        if not isinstance(target.value, Stack):
            value = target.value.like if isinstance(target.value, Fold) else target.value
            report.entries.append(_entry(found, value, target.source, note))
            continue
        row = 0
        for value, source in zip(target.value.parts, target.value.sources, strict=True):
            rows = f"rows {row} to {row + value.shape[0] - 1}"
            report.entries.append(_entry(found, value, source, f"{rows}; {note}" if note else rows))
            row += value.shape[0]


def _entry(found: Match, value: Any, source: str, note: str) -> ReportEntry:
    source_class = type(value).__name__
    value = _plain_or_weight(f"{_WHERE}: {source}", value)
    shape = tuple(value.shape)
    if not isinstance(value, QuantizedWeight):
        dtype = str(value.dtype).removeprefix("torch.")
        return ReportEntry(found.target, source, source_class, found.target_class, shape, dtype, note=note)
    some = value.scale.numel() > 0
    return ReportEntry(
        target=found.target,
        source=source,
        source_class=source_class,
        target_class=found.target_class,
        shape=shape,
        dtype=value.dtype,
        qscheme=value.qscheme,
        scale_min=float(value.scale.min()) if some else None,
        scale_max=float(value.scale.max()) if some else None,
        zero_point_min=float(value.zero_point.min()) if some else None,
        zero_point_max=float(value.zero_point.max()) if some else None,
        note=note,
    )
