"""Findings from the weights and biases alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.diagnosis.findings.recognise import FROM_INTEGERS, Verdict
from qdeq.diagnosis.findings.scan import Case, Scan, open_case, scan_weight
from qdeq.diagnosis.kinds import KINDS, REBUILD
from qdeq.diagnosis.results import Finding, Layer
from qdeq.diagnosis.sides.integers import FloatLayer, Integers
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["finding", "weight_findings"]

CORRELATED = 0.5
# Weights of a layer that are kept for the plot.
PLOTTED = 4096
# Gates of torch's recurrent modules: weights of so many times hidden_size rows. Of any other module all are possible.
_GATES = {"torch.nn.LSTM": 4, "torch.nn.LSTMCell": 4, "torch.nn.GRU": 3, "torch.nn.GRUCell": 3}
_GATES |= {"torch.nn.RNN": 1, "torch.nn.RNNCell": 1}


def finding(
    pair: Pair, kind: str, sentence: str, evidence: dict[str, Any], share: float, *, remedy_of: str = ""
) -> Finding:
    """Return a finding at a pair, with the remedy of its kind, or of the kind ``remedy_of``."""
    names = {"module": pair.partner.path, "source": pair.layer.path, **evidence}
    remedy = (KINDS[remedy_of or kind].remedy if pair.layer.alone and pair.partner.alone else REBUILD).format_map(names)
    return Finding(pair.layer.path, kind, f"{pair.layer.path}: {sentence}", evidence, share, None, remedy)


def weight_findings(pairs: list[Pair], total_weights: int) -> tuple[list[Finding], dict[str, Layer], dict[str, Any]]:
    """Judge every pair's weight and bias.

    Returns:
        the findings; path -> row of the table; path -> histogram for the plots.

    """
    findings: list[Finding] = []
    table: dict[str, Layer] = {}
    histograms: dict[str, Any] = {}
    for pair in pairs:
        share = pair.layer.numel / max(1, total_weights)
        row = Layer(pair.layer.path, pair.partner.path, pair.layer.class_name, pair.partner.class_name)
        row.weights = pair.layer.numel
        table[pair.layer.path] = row
        if not pair.same_shape:
            text = f"the weight is {tuple(pair.partner.weight.shape)}, the int8 model has {pair.layer.shape}"
            findings.append(finding(pair, "shape_mismatch", text, {}, share))
            continue
        ints = pair.layer.ints
        rows, scan = _best_scan(pair, ints)
        row.weight_equal = scan.equal / max(1, scan.total)
        row.weight_error_steps = scan.max_steps
        histograms[pair.layer.path] = _histogram(ints, rows)
        findings.append(_judge_weight(pair, ints, rows, scan, pairs, share))
        bias = _judge_bias(pair, pairs, pair.layer.ints.scale.numel() / max(1, total_weights))
        if bias is not None:
            findings.append(bias)
    _find_swaps(findings)
    _find_other_checkpoint(findings)
    return findings, table, histograms


def _best_scan(pair: Pair, ints: Integers) -> tuple[Tensor, Scan]:
    """Return the weight as it stands, or with the batch norm behind it folded in if that fits better."""
    rows = ints.as_rows(pair.partner.weight)
    scan = scan_weight(ints, rows)
    if pair.folded is None or scan.is_right:
        return rows, scan
    folded = ints.as_rows(pair.folded[0])
    folded_scan = scan_weight(ints, folded)
    better = folded_scan.is_right or folded_scan.correlation > scan.correlation + 0.01
    if better:
        pair.use_folded = True
        return folded, folded_scan
    return rows, scan


def _judge_weight(pair: Pair, ints: Integers, rows: Tensor, scan: Scan, pairs: list[Pair], share: float) -> Finding:
    evidence: dict[str, Any] = {
        "correlation": scan.correlation,
        "relative_error": scan.relative_error,
        "equal_share": scan.equal / max(1, scan.total),
    }
    if scan.is_right:
        evidence["max_steps"] = scan.max_steps
        if scan.clipped:
            evidence["clipped_weights"] = scan.clipped
        text = "bit-equal" if scan.equal == scan.total else f"at most {scan.max_steps:.2f} steps off"
        return finding(pair, "rounding", f"these weights are right ({text})", evidence, share)
    if not scan.finite:
        count = int((~torch.isfinite(rows)).sum())
        return finding(pair, "not_finite", f"{count} weights are NaN or infinite", {"count": count}, share)
    case = open_case(pair.layer, pair.partner, ints, rows, scan)
    kind, sentence, more = _name_fault(case, pairs)
    return finding(pair, kind, sentence, {**evidence, **more}, share)


def _name_fault(case: Case, pairs: list[Pair]) -> tuple[str, str, dict[str, Any]]:
    for recognise in FROM_INTEGERS:
        found = recognise(case)
        if found is not None:
            return found
    return _of_other_layer(case, pairs) or _never_copied(case) or _other_values(case)


def _of_other_layer(case: Case, pairs: list[Pair]) -> Verdict:
    for other in pairs:
        if other.layer.path == case.layer.path or other.layer.shape != case.layer.shape:
            continue
        theirs = other.layer.ints
        if theirs.values.shape != case.ints.values.shape:
            continue
        rows = theirs.rows(case.channels).double()[:, case.columns]
        if bool(((case.w - rows).abs() <= 0.5001 * theirs.scale[case.channels].unsqueeze(1)).double().mean() > 0.99):
            text = f"these are the weights of {other.layer.path}"
            return "weight_of_other_layer", text, {"holds": other.layer.path}
    return None


def _never_copied(case: Case) -> Verdict:
    initial = initial_distribution(case.partner.weight, rnn_bounds(case.partner))
    # The start of the very training run may still be correlated with its end, but then it is sharply bounded; a bell
    # curve alone says nothing.
    if initial is None or (abs(case.scan.correlation) >= CORRELATED and not initial.startswith("uniform")):
        return None
    text = (
        f"the weight was never copied: it is still {initial}, correlation with the source {case.scan.correlation:.2f}"
    )
    return "weight_not_copied", text, {"distribution": initial}


def _other_values(case: Case) -> tuple[str, str, dict[str, Any]]:
    if abs(case.scan.correlation) >= CORRELATED:
        text = (
            f"the weight was changed: {100 * case.scan.beyond / case.scan.total:.0f} % of its values are more than "
            f"half a step off, correlation {case.scan.correlation:.3f}"
        )
        return "weight_altered", text, {"beyond_half_step": case.scan.beyond / case.scan.total}
    text = f"the weight is that of another training run: correlation {case.scan.correlation:.2f}, not an initial value"
    return "other_checkpoint", text, {}


def rnn_bounds(layer: FloatLayer) -> list[float]:
    """Bounds within which torch's RNNs and cells draw their weights and biases: 1 / sqrt(hidden_size)."""
    if "weight_ih" not in layer.parameter and "weight_hh" not in layer.parameter:
        return []
    gates = _GATES.get(layer.class_name)
    return [(layer.weight.shape[0] / count) ** -0.5 for count in ((gates,) if gates else (4, 3, 1))]


def initial_distribution(weight: Tensor, bounds: Sequence[float] = ()) -> str | None:
    """Name the initialisation whose distribution ``weight`` still has; None for trained weights.

    Tested are a constant, torch's default (uniform, bound 1 / sqrt(fan_in)), and the uniform and normal forms of
    Kaiming's and Xavier's rules, and the normal ones of torchvision, by Kolmogorov's distance.

    Args:
        weight: of any shape.
        bounds: other bounds of a uniform distribution to test.

    """
    if weight.numel() < 2:
        return None
    low, high = float(weight.min()), float(weight.max())
    if low == high:
        return f"the constant {low:g}"
    if weight.ndim < 2:
        return None
    values = _sorted_sample(weight)
    field = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
    # Distance that a sample of the right distribution exceeds once in about 2000 tries.
    limit = 2.0 / len(values) ** 0.5
    bound = max(-low, high)
    kaiming = (1 / fan_in**0.5, (6 / fan_in) ** 0.5, (6 / fan_out) ** 0.5, (6 / (fan_in + fan_out)) ** 0.5)
    for size in (*bounds, *kaiming):
        if 0.5 * size < bound <= size * (1 + 1e-6) and _distance(values, (values / size + 1) / 2) < limit:
            return f"uniform within {size:.3g}, as initialised"
    normal = (0.01, 0.02, (2 / fan_out) ** 0.5, (2 / fan_in) ** 0.5, fan_in**-0.5, (2 / (fan_in + fan_out)) ** 0.5, 1.0)
    for std in normal:
        if _distance(values, 0.5 * (1 + torch.erf(values / (std * 2**0.5)))) < limit:
            return f"normal with standard deviation {std:.3g}, as initialised"
    return None


def _sorted_sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    if len(flat) > 65536:
        flat = flat[torch.randint(len(flat), (65536,), generator=torch.Generator().manual_seed(0))]
    return flat.double().sort().values


def _distance(values: Tensor, cumulative: Tensor) -> float:
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    return float(torch.maximum((steps[1:] - cumulative).abs(), (cumulative - steps[:-1]).abs()).max())


def _judge_bias(pair: Pair, pairs: list[Pair], share: float) -> Finding | None:
    source, bias = pair.layer.bias, pair.bias
    if source is None or float(source.abs().max()) == 0:
        if bias is None or float(bias.abs().max()) == 0:
            return None
        source = torch.zeros_like(bias) if source is None else source
    if bias is None:
        size = float(source.abs().max())
        text = f"the bias is missing (up to {size:.3g}{_folded_note(pair)})"
        return finding(pair, "bias_missing", text, {"largest": size}, share)
    if bias.shape != source.shape:
        text = f"the bias is {tuple(bias.shape)}, the int8 model has {tuple(source.shape)}"
        return finding(pair, "bias_wrong", text, {}, share)
    error = float((bias.float() - source).abs().max())
    size = float(source.abs().max())
    evidence = {"max_error": error, "largest": size}
    if not math.isfinite(error):
        text = "the bias holds NaN or infinite values"
        return finding(pair, "not_finite", text, {**evidence, "part": "bias"}, share, remedy_of="bias_wrong")
    # Bias is not quantized, yet folding a batch norm rounds it.
    if error <= 1e-4 * size + 1e-7:
        return None
    if float(bias.abs().max()) == 0:
        text = f"the bias is zero, in the int8 model up to {size:.3g}{_folded_note(pair)}"
        return finding(pair, "bias_zeroed", text, evidence, share)
    for other in pairs:
        theirs = other.layer.bias
        if theirs is not None and other is not pair and torch.equal(theirs, bias.float()):
            text = f"the bias is the one of {other.layer.path}"
            return finding(pair, "bias_wrong", text, {**evidence, "holds": other.layer.path}, share)
    if _initial_bias(bias, pair):
        text = "the bias was never copied: it is still uniform, as initialised"
        return finding(pair, "bias_not_copied", text, evidence, share)
    text = f"the bias differs by up to {error:.3g} (largest value {size:.3g})"
    return finding(pair, "bias_wrong", text, evidence, share)


def _folded_note(pair: Pair) -> str:
    return ", the shift of the folded batch norm is in it" if pair.norm else ""


def _initial_bias(bias: Tensor, pair: Pair) -> bool:
    values, largest = bias.double().sort().values, float(bias.abs().max())
    bounds = rnn_bounds(pair.partner) or [math.prod(pair.partner.weight.shape[1:]) ** -0.5]
    return any(
        largest <= bound * (1 + 1e-6) and _distance(values, (values / bound + 1) / 2) < 2.0 / len(values) ** 0.5
        for bound in bounds
    )


def _find_swaps(findings: list[Finding]) -> None:
    holds = {item.module: item for item in findings if item.kind == "weight_of_other_layer"}
    for path, item in holds.items():
        other = item.evidence["holds"]
        if other in holds and holds[other].evidence["holds"] == path:
            item.kind = "weights_swapped"
            item.message = f"{path}: its weights and those of {other} are swapped"


def _find_other_checkpoint(findings: list[Finding]) -> None:
    """Every layer off at once is another checkpoint, whatever each one looks like alone."""
    judged = [item for item in findings if item.kind.startswith(("weight", "scale", "zero", "other", "rounding"))]
    altered = [item for item in judged if item.kind in ("weight_altered", "other_checkpoint", "weight_not_copied")]
    correlated = [item for item in altered if item.kind != "weight_not_copied"]
    if len(judged) < 2 or len(altered) < 0.8 * len(judged) or len(correlated) < 0.5 * len(judged):
        return
    for item in altered:
        item.kind = "other_checkpoint"
        item.message = (
            f"{item.module}: the weights are those of a different checkpoint, as in every other layer "
            f"(correlation {item.evidence['correlation']:.3f})"
        )
        item.remedy = KINDS["other_checkpoint"].remedy


def _histogram(ints: Integers, rows: Tensor) -> dict[str, Any]:
    """Return a sample of the weights, in steps of their channel's scale, and of the integers; for the plot."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(max(1, rows.numel()), (min(PLOTTED, rows.numel()),), generator=generator)
    channels = places // max(1, rows.shape[1])
    centred = ints.values.reshape(-1)[places].double() - ints.zero_point[channels]
    weights = rows.reshape(-1)[places].double() / ints.scale[channels]
    return {"integers": centred.tolist(), "weights": weights.tolist()}
