"""Recognisers of wrong weights that are made from the layer's own integers: one small function per kind.

Each takes a :class:`Case` and returns None or (kind, sentence, evidence). They are tried in the order of
:data:`FROM_INTEGERS`; the first that fits names the fault, and the formula it found is the one that was used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from qdeq.diagnosis.findings.scan import Case

__all__ = ["FROM_INTEGERS", "Fault", "Verdict", "scaled_wrongly"]

Fault: TypeAlias = tuple[str, str, dict[str, Any]]
Verdict: TypeAlias = "Fault | None"

# Two float64 scales that are equal to this much are the same scale.
SAME_SCALE = 1e-6
# Transposes are looked for in whole weights up to this size; larger square layers are rare.
MAX_WHOLE = 1 << 25


def fit_lines(case: Case) -> tuple[Tensor, Tensor] | None:
    """Fit w = a q + b in each channel of the sample; (a, b), float64 (n,), if every channel is on its line."""
    q, w = case.q, case.w
    q_mean, w_mean = q.mean(1, keepdim=True), w.mean(1, keepdim=True)
    spread = (q - q_mean).square().sum(1)
    if bool((spread == 0).any()) or q.shape[1] < 3:
        return None
    a = ((q - q_mean) * (w - w_mean)).sum(1) / spread
    b = w_mean.flatten() - a * q_mean.flatten()
    line = a.unsqueeze(1) * q + b.unsqueeze(1)
    size = w.abs().amax(1, keepdim=True)
    on_line = bool(((w - line).abs() <= case.tolerance * size).all()) and bool((a != 0).all())
    return (a, b) if on_line else None


def scaled_wrongly(case: Case) -> Verdict:
    """Recognise the float weight is a line in the integers: name the factor and the zero point that were used."""
    fit = fit_lines(case)
    if fit is None:
        return None
    a, b = fit
    s, z = case.s.flatten(), case.z.flatten()
    used_zero = -b / a
    ignored = bool((used_zero.abs() < 1e-2).all()) and bool((z != 0).any())
    evidence: dict[str, Any] = {
        "factor": _span(a),
        "scale": _span(s),
        "zero_point_used": _span(used_zero.round()),
        "zero_point": _span(z),
        "fit": "every sampled weight lies on the line",
    }
    formula = "q" if bool((used_zero.abs() < 1e-2).all()) else "(q - zero_point)"
    if _close(a, s) and ignored:
        return "zero_point_ignored", "the weight is scale * q: the zero point was not subtracted", evidence
    for recognise in (_missing, _of_activation, _divided, _constant):
        found = recognise(case, a, s, formula)
        if found is not None:
            kind, sentence = found
            return kind, sentence, evidence
    return "scale_wrong", f"the weight is factor * {formula} with factors that are not the scales", evidence


def _missing(case: Case, a: Tensor, s: Tensor, formula: str) -> tuple[str, str] | None:
    if not _close(a, torch.ones_like(a)):
        return None
    return "scale_missing", f"the weight is {formula}: the integers were copied and no scale was applied"


def _of_activation(case: Case, a: Tensor, s: Tensor, formula: str) -> tuple[str, str] | None:
    output = case.layer.output
    if output is None or not _close(a, torch.full_like(a, output[0])):
        return None
    name = f"int8_model.{case.layer.path}.scale"
    return "scale_of_activation", f"the weight is {output[0]:.6g} * {formula}: {name} is the scale of the output"


def _divided(case: Case, a: Tensor, s: Tensor, formula: str) -> tuple[str, str] | None:
    if not _close(a * s, torch.ones_like(a)):
        return None
    return "scale_divided", f"the weight is {formula} / scale: the integers were divided instead of multiplied"


def _constant(case: Case, a: Tensor, s: Tensor, formula: str) -> tuple[str, str] | None:
    scales = case.ints.scale
    one_scale = _close(scales, scales[:1].expand_as(scales))  # per tensor: there is no other to take it for
    if not _close(a, a[:1].expand_as(a)) or len(a) < 2 or one_scale:
        return None
    factor = float(a.median())
    nearest = int((scales - factor).abs().argmin())
    to_mean = abs(float(scales.mean()) - factor)
    if to_mean <= SAME_SCALE * factor and to_mean <= abs(float(scales[nearest]) - factor):
        return "scale_mean", f"the weight is mean(scales) * {formula}: {factor:.6g} for every channel"
    if abs(float(scales[nearest]) - factor) <= SAME_SCALE * factor:
        text = f"the weight is scales[{nearest}] * {formula}: one channel's scale for all {len(scales)} channels"
        return "scale_of_one_channel", text
    return None


def zero_point_wrapped(case: Case) -> Verdict:
    """Scale * int8(q - zero_point): the difference wrapped around."""
    low, high = case.ints.full_range
    size = high - low + 1
    for start, name in ((low, "the integers' own dtype"), (-(size // 2), "int8")):
        wrapped = torch.remainder(case.q - case.z - start, size) + start
        if case.matches(case.s * wrapped):
            outside = float((wrapped != case.q - case.z).double().mean())
            text = f"the weight is scale * (q - zero_point) with the difference wrapped around in {name}"
            return "zero_point_wrapped", text, {"wrapped_share_of_sample": outside}
    return None


def scale_wrong_axis(case: Case) -> Verdict:
    """Recognise the scales broadcast along another dimension of the same length."""
    ints = case.ints
    moved = [ints.shape[ints.axis], *(size for i, size in enumerate(ints.shape) if i != ints.axis)]
    names = [ints.axis, *(i for i in range(len(ints.shape)) if i != ints.axis)]
    for position in range(1, len(moved)):
        if moved[position] != len(ints.scale) or not ints.per_channel:
            continue
        inner = int(torch.Size(moved[position + 1 :]).numel())
        index = case.columns // inner % moved[position]
        if case.matches(
            ints.scale[index].unsqueeze(0) * (case.q - ints.zero_point[index].unsqueeze(0))
        ) or case.matches(ints.scale[index].unsqueeze(0) * (case.q - case.z)):
            text = f"the scales were broadcast along dimension {names[position]}, they belong to {names[0]}"
            return "scale_wrong_axis", text, {"axis_used": names[position], "axis": names[0]}
    return None


def weight_transposed(case: Case) -> Verdict:
    """Recognise the right values with two dimensions exchanged, or the kernel turned around."""
    ints = case.ints
    if len(ints.shape) < 2 or ints.values.numel() > MAX_WHOLE:
        return None
    reference = ints.reference()
    for text, changed in _rearranged(reference):
        if changed.shape == reference.shape and case.matches(_sample(case, changed)):
            return "weight_transposed", f"the weight is right with {text}", {"rearrangement": text}
    return None


def _rearranged(weight: Tensor) -> list[tuple[str, Tensor]]:
    found = [("dimensions 0 and 1 exchanged", weight.transpose(0, 1))]
    if weight.ndim >= 4:
        found.append(("the kernel's two sides exchanged", weight.transpose(-1, -2)))
        found.append(("dimensions 0 and 1 and the kernel's sides exchanged", weight.transpose(0, 1).transpose(-1, -2)))
    if weight.ndim >= 3:
        found.append(("the kernel turned around", weight.flip(list(range(2, weight.ndim)))))
    return found


def flatten_order(case: Case) -> Verdict:
    """Recognise a Linear whose columns run (height, width, channel) and not (channel, height, width)."""
    ints = case.ints
    if len(ints.shape) != 2:
        return None
    columns = ints.shape[1]
    reference = ints.rows(case.channels).double()
    actual = case.rows[case.channels].double()
    limit = case.tolerance * reference.abs().amax()
    for channels in range(2, columns // 2 + 1):
        if columns % channels:
            continue
        inner = columns // channels
        changed = reference.view(-1, channels, inner)[:, :, : min(inner, 2)].transpose(1, 2)[:, :, :2]
        probe = actual.view(-1, inner, channels)[:, : min(inner, 2), :2]
        if not bool(((probe - changed).abs() <= limit).all()):
            continue
        whole = reference.view(-1, channels, inner).transpose(1, 2).reshape(reference.shape)
        if bool(((actual - whole).abs() <= limit).all()):
            text = f"the columns are right in another order: {channels} x {inner} features were flattened the other way"
            return "flatten_order", text, {"outer": channels, "inner": inner}
    return None


def channels_permuted(case: Case) -> Verdict:
    """Right output or input channels in another order."""
    for name, dimension in (("output", 0), ("input", 1)):
        matches = _match_channels(case, dimension)
        if matches is None:
            continue
        wrong, partners, share = matches
        if share >= 0.9 and len(set(partners)) >= 0.9 * len(partners) and len(partners) >= 2:
            text = f"the {name} channels are right in another order: channel {wrong[0]} holds channel {partners[0]}"
            return "channels_permuted", text, {"dimension": name, "matched_share_of_sample": share}
    return None


def _match_channels(case: Case, dimension: int) -> tuple[list[int], list[int], float] | None:
    ints, generator = case.ints, torch.Generator().manual_seed(1)
    if dimension == 0:
        columns = case.columns[torch.randperm(len(case.columns), generator=generator)[:256]]
        wrong = case.channels
        actual = case.rows[wrong][:, columns].double()
        reference = (ints.values[:, columns].double() - ints.zero_point.unsqueeze(1)) * ints.scale.unsqueeze(1)
    else:
        rows = torch.randperm(len(ints.scale), generator=generator)[:128]
        others = [size for i, size in enumerate(ints.shape) if i != ints.axis]
        if not others or others[0] < 2:
            return None
        view = (len(rows), others[0], -1)
        reference = ints.rows(rows).double().view(view).transpose(0, 1).flatten(1)
        actual = case.rows[rows].double().view(view).transpose(0, 1).flatten(1)
        wrong = ((actual - reference).abs().amax(1) > 0.51 * float(ints.scale[rows].max())).nonzero().flatten()[:128]
        actual = actual[wrong]
    if len(wrong) < 2 or actual.shape[1] < 4:
        return None
    likeness = _unit(actual) @ _unit(reference).T
    best, partners = likeness.max(1)
    found = (best > 0.99) & (partners != wrong)
    return wrong[found].tolist() or [0], partners[found].tolist(), float(found.double().mean())


def _unit(rows: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / size.clamp_min(1e-30)


def weight_partly_copied(case: Case) -> Verdict:
    """Recognise some output channels, or some columns of every channel, are right and the others are not."""
    right = int(case.scan.right.sum())
    total = len(case.scan.right)
    if 0 < right < total and right >= max(1, 0.02 * total):
        text = f"{right} of {total} output channels are right, the others were not copied"
        return "weight_partly_copied", text, {"channels_right": right, "channels": total}
    expected_w = (case.q - case.z) * case.s
    columns = ((case.w - expected_w).abs() <= 0.5001 * case.s).all(0)
    share = float(columns.double().mean())
    if len(case.channels) >= 8 and 0.02 <= share < 1:
        text = f"{100 * share:.0f} % of the columns (input channels) are right, the others were not copied"
        return "weight_partly_copied", text, {"columns_right_share": share}
    return None


def _sample(case: Case, weight: Tensor) -> Tensor:
    return case.ints.as_rows(weight)[case.channels][:, case.columns].double()


def _close(a: Tensor, b: Tensor) -> bool:
    return bool(((a - b).abs() <= 2e-5 * b.abs()).all())


def _span(values: Tensor) -> list[float]:
    return [float(values.min()), float(values.max())]


FROM_INTEGERS: tuple[Callable[[Case], Verdict], ...] = (
    scaled_wrongly,
    zero_point_wrapped,
    scale_wrong_axis,
    weight_transposed,
    flatten_order,
    channels_permuted,
    weight_partly_copied,
)
