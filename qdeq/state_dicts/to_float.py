"""A quantized state dict to the float state dict it stands for, and into a float model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected, refuse
from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.state_dicts.fitting import below_prefix, fit_names, mark_rowwise
from qdeq.state_dicts.integers import INTEGERS_REMEDY, unexplained
from qdeq.state_dicts.matching import INTO, Match, match
from qdeq.state_dicts.named import plan_state
from qdeq.state_dicts.parts import Fold, Plan, Rowwise, Scaled, Stack, Target
from qdeq.state_dicts.rowwise import rowwise_shape
from qdeq.state_dicts.values import as_weight, shape_of, value_of
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.block_weight import BlockWeight
from qdeq.weights.checks import describe
from qdeq.weights.dequant import dequantize_source
from qdeq.weights.weight import QuantizedWeight, report_facts
from qdeq.words import dtype_name

__all__ = ["dequantize_state_dict"]

_WHERE = "dequantize_state_dict"


def dequantize_state_dict(
    sd: Mapping[str, Any],
    *,
    into: nn.Module | None = None,
    dtype: torch.dtype = torch.float32,
    strict: bool = True,
    norms: Mapping[str, str] | None = None,
    prefix: str | None = None,
    rowwise: Collection[str] | Mapping[str, int] = (),
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
        norms: with ``into``: path of a layer -> path of the batch norm that was folded into it, such as
            ``{"conv1": "bn1"}``, for those that neither the forward of ``into`` nor the order of its modules tells.
        strict: with ``into``, raise if a source is unused or a parameter is not written; otherwise the report says so.
            Without it, raise if a weight is of plain integers with no scale beside them; otherwise it is passed on.
        prefix: take only what lies below this path, such as ``"model_ema"``, under the names there. With ``into``, a
            prefix that only one side has is found from the names; the report says what was renamed.
        rowwise: names of uint8 tables of 8-bit values with float32 scale and offset at the end of each row, as FBGEMM
            and torchrec store embeddings; or names -> bits, 8 or 4 (with float16 scale and offset).

    Returns:
        The float state dict, under the names of ``into`` if that is given, and the report. The scale and zero point of
        each quantized output are in ``report.activation_qparams``.

    Raises:
        QdeqTypeError: ``sd`` is no mapping, ``into`` no module or ``norms`` no dict of names.
        QdeqValueError: keys that cannot be understood, a damaged tensor, or a state dict that does not fit ``into``;
            a folded batch norm that may belong to several layers (all are named), or one that ``norms`` cannot mean.

    """
    if not isinstance(sd, Mapping):
        remedy = "Pass model.state_dict() or qdeq.open(path); for a model see qdeq.dequantize_model."
        raise QdeqTypeError(expected(f"{_WHERE}: sd", "a state dict", describe(sd), remedy))
    if into is not None and not isinstance(into, nn.Module):
        raise QdeqTypeError(expected(f"{_WHERE}: into", "a float nn.Module", describe(into), "Pass the model to load."))
    if norms is not None and into is None:
        refuse(f"{_WHERE}: norms", "None without into", repr(norms), "Pass the float model to load as into.")
    plan = plan_state(_WHERE, sd, into)
    mark_rowwise(_WHERE, plan, rowwise)
    if not plan.targets:
        remedy = "Pass the state dict of a quantized model."
        refuse(f"{_WHERE}: sd", "at least one weight", f"{len(sd)} entries", remedy)
    if prefix is not None:
        plan = below_prefix(_WHERE, plan, prefix)
    where = sd.path if isinstance(sd, WeightFile) else _WHERE
    _check_biases(where, plan)
    report = Report()
    if into is not None:
        plan = fit_names(f"{_WHERE}: sd", plan, into, report, shape_of, as_they_are=prefix is not None)
    report.activation_qparams |= {n: (float(s), int(z)) for n, (s, z) in plan.activations.items()}
    report.dropped.extend(DroppedSource(source, reason) for source, reason in plan.dropped.items())
    if into is None:
        matches = _own_names(plan, report, strict=strict)
    else:
        matches = match(plan, into, report, shape_of, strict=strict, norms=norms)
    tensors = {name: _value(where, name, target, dtype) for name, target in plan.targets.items()}
    _fill_report(report, plan, matches)
    for text in sd.unchecked if isinstance(sd, WeightFile) else ():
        report.note("", text)
    return (tensors if into is None else _load(into, matches, tensors)), report


def _own_names(plan: Plan, report: Report, *, strict: bool) -> list[Match]:
    """Everything under its own float name."""
    for name, got in unexplained({name: target.value for name, target in plan.targets.items()}).items():
        if strict:
            remedy = f"{INTEGERS_REMEDY} With strict=False the integers are passed on."
            refuse(f"{_WHERE}: {name}", "a floating point or quantized weight", got, remedy)
        report.note(name, f"{got}: passed on as integers")
    for name, why in plan.doubtful.items():
        report.note(name, why)
    return [Match(name, name, "", "Tensor") for name in plan.targets]


def _check_biases(where: str, plan: Plan) -> None:
    """Refuse integers as the bias of a quantized weight: their scale, input times weight, is in no state dict."""
    for name, target in plan.targets.items():
        weight = plan.targets.get(name.removesuffix("bias") + "weight") if name.endswith("bias") else None
        if weight is None or not isinstance(target.value, Tensor) or target.value.is_floating_point():
            continue
        scaled = isinstance(weight.value, Scaled | BlockWeight)
        if scaled or isinstance(as_weight(where, weight.value), QuantizedWeight):
            remedy = "Multiply it by the scales of input and weight, and save the floats."
            refuse(f"{where}: {target.source}", "a floating-point bias", describe(target.value), remedy)


def _value(where: str, name: str, target: Target, dtype: torch.dtype) -> Tensor:
    where = f"{where}: {target.source}"
    value: Any = target.value
    if isinstance(value, Fold):
        return value_of(where, value).to(dtype)  # type: ignore[union-attr]  # a fold is float
    if isinstance(value, Rowwise | Scaled | Stack):
        value = value_of(where, value)
    if isinstance(value, QuantizedWeight | BlockWeight) or value.is_quantized:
        return dequantize_source(value, where=where, dtype=dtype)
    plain: Tensor = value.detach()
    keeps = not plain.is_floating_point() or dtype == torch.float32
    if keeps and name.rsplit(".", 1)[-1].startswith("bias") and plain.dtype == torch.float64:
        keeps = False  # a packed bias is float32 wherever it is used
    return plain.clone() if keeps else plain.to(dtype, copy=True)


def _fill_report(report: Report, plan: Plan, matches: list[Match]) -> None:
    for found in matches:
        target = plan.targets.get(found.source)
        if target is None:
            continue
        note = "; ".join(text for text in (target.note, found.how) if text)
        if not isinstance(target.value, Stack):
            report.entries.append(_entry(found, _described(target), target.source, note))
            continue
        row = 0
        for value, source in zip(target.value.parts, target.value.sources, strict=True):
            rows = f"rows {row} to {row + value.shape[0] - 1}"
            report.entries.append(_entry(found, value, source, f"{rows}; {note}" if note else rows))
            row += value.shape[0]


def _described(target: Target) -> Any:
    """What a report says of a target's value: the value, or what stands for it."""
    value = target.value
    if isinstance(value, Rowwise):
        return torch.empty(rowwise_shape(tuple(value.table.shape), value.bits), dtype=torch.uint8, device="meta")
    if isinstance(value, Scaled):
        return value_of(f"{_WHERE}: {target.source}", value)
    return value.like if isinstance(value, Fold) else value


def _entry(found: Match, value: Any, source: str, note: str) -> ReportEntry:
    source_class = type(value).__name__
    value = as_weight(f"{_WHERE}: {source}", value)
    facts = {"dtype": dtype_name(value.dtype)} if isinstance(value, Tensor) else report_facts(value)
    shape = tuple(value.shape)
    return ReportEntry(found.target, source, source_class, found.target_class, shape, **facts, note=note)


def _load(model: nn.Module, matches: list[Match], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write everything into a float model, or, if one write fails, put back what was there.

    ``tensors`` are by the float names of sources, the result by the names in the model.
    """
    targets = model.state_dict(keep_vars=True)
    values: dict[str, Tensor] = {}
    for found in matches:
        target = targets[found.target]
        if target.device.type == "meta":
            remedy = "Call to_empty(device='cpu') on it first."
            refuse(f"{INTO}: {found.target}", "a tensor with memory", "a meta tensor", remedy)
        if found.value is None:
            value = tensors[found.source]
        else:
            value = torch.full(target.shape, found.value, dtype=target.dtype)
        earlier = values.get(found.tied)
        if earlier is not None and not _equal(earlier, value):
            remedy = "The model ties two parameters that differ: untie them."
            refuse(f"{INTO}: {found.target}", "equal tied values", "different ones", remedy)
        values[found.target] = value
    _write(targets, values)
    return values


@torch.no_grad()
def _write(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    before = {name: targets[name].detach().clone() for name in values}
    begun: list[str] = []
    try:
        for name, value in values.items():
            begun.append(name)
            targets[name].detach().copy_(value)
    except BaseException as error:
        refused = isinstance(error, RuntimeError)  # an expanded tensor, one made in inference mode, no memory
        for name in begun[:-1] if refused else begun:
            targets[name].detach().copy_(before[name])
        if refused:
            what, reason = "a tensor that can be written to", str(error).splitlines()[0].rstrip(".")
            remedy = "Nothing was changed. Load into a model whose parameters have memory of their own."
            raise QdeqValueError(expected(f"{INTO}: {begun[-1]}", what, f"{reason!r}", remedy)) from error
        raise


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
