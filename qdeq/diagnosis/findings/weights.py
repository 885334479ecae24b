"""Findings from the weights and biases alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.diagnosis.findings.recognise import FROM_INTEGERS, Fault, Verdict, scaled_wrongly
from qdeq.diagnosis.findings.scan import Case, Scan, open_case, scan_weight
from qdeq.diagnosis.kinds import KINDS, REBUILD
from qdeq.diagnosis.results import Finding, Layer
from qdeq.diagnosis.sides.integers import FloatLayer, Integers
from qdeq.diagnosis.sides.pairs import Norm, Pair, other_norms

__all__ = ["finding", "weight_findings"]

CORRELATED = 0.5
# Weights on which each batch norm that may be folded in is tried.
QUICK = 1 << 14
# Weights of a layer that are kept for the plot.
PLOTTED = 4096
# Gates of torch's recurrent modules: weights of so many times hidden_size rows. Of any other module all are possible.
_GATES = {"torch.nn.LSTM": 4, "torch.nn.LSTMCell": 4, "torch.nn.GRU": 3, "torch.nn.GRUCell": 3}
_GATES |= {"torch.nn.RNN": 1, "torch.nn.RNNCell": 1}


def finding(pair: Pair, kind: str, sentence: str, evidence: dict[str, Any], *, of_bias: bool = False) -> Finding:
    """Return a finding at a pair, about its weight or its bias, with the remedy of its kind."""
    path, numel = pair.layer.path, pair.layer.ints.scale.numel() if of_bias else pair.layer.numel
    # Whatever is wrong with a bias, its remedy is the same.
    remedy = KINDS["bias_wrong" if of_bias else kind].remedy if pair.alone else REBUILD
    remedy = remedy.format_map({"module": pair.partner.path, "source": path, **evidence})
    return Finding(path, kind, f"{path}: {sentence}", evidence, numel / pair.total, None, remedy)


def weight_findings(pairs: list[Pair]) -> tuple[list[Finding], dict[str, Layer], dict[str, Any]]:
    """Judge every pair's weight and bias.

    Returns:
        the findings; path -> row of the table; path -> histogram for the plots.

    """
    findings: list[Finding] = []
    table: dict[str, Layer] = {}
    histograms: dict[str, Any] = {}
    for pair in pairs:
        path, ints = pair.layer.path, pair.layer.ints
        row = Layer(path, pair.partner.path, pair.layer.class_name, pair.partner.class_name, pair.layer.numel)
        table[path] = row
        if not pair.same_shape:
            text = f"the weight is {tuple(pair.partner.weight.shape)}, the int8 model has {pair.layer.shape}"
            findings.append(finding(pair, "shape_mismatch", text, {}))
            continue
        rows, scan = _best_scan(pair, ints)
        row.weight_equal = scan.equal / max(1, scan.total)
        row.weight_error_steps = max(scan.max_steps, scan.max_excess)
        histograms[path] = _histogram(ints, rows)
        findings.append(finding(pair, *_judge_weight(pair, rows, scan, pairs)))
        if bias := _judge_bias(pair, pairs):
            findings.append(finding(pair, *bias, of_bias=True))
    _find_swaps(findings)
    _find_other_checkpoint(findings)
    return findings, table, histograms


def _best_scan(pair: Pair, ints: Integers) -> tuple[Tensor, Scan]:
    """Return the weight as it stands, or with a batch norm behind it folded in if that fits better.

    Which one it is, and its eps where a file does not say it, is the one under which the integers are right.
    """
    limits = pair.partner.limits
    rows = ints.as_rows(pair.partner.weight)
    scan = scan_weight(ints, rows, limits)
    if scan.is_right:
        return rows, scan
    norms = pair.norms + (other_norms(pair) if not any(_explains(pair, norm) for norm in pair.norms) else [])
    likely = [norm for norm in norms if _explains(pair, norm)]
    if norms and not likely:
        likely = [max(norms, key=lambda norm: _quick(pair, norm).correlation)]
    for norm in likely:
        folded = ints.as_rows(pair.fold_with(norm)[0])
        folded_scan = scan_weight(ints, folded, limits)
        if folded_scan.is_right or (norm is likely[-1] and folded_scan.correlation > scan.correlation + 0.01):
            pair.fold(norm)
            pair.use_folded = True
            return folded, folded_scan
    return rows, scan


def _quick(pair: Pair, norm: Norm) -> Scan:
    """Look at some channels of the layer with a batch norm folded in."""
    ints = pair.layer.ints
    return scan_weight(ints, ints.as_rows(pair.fold_with(norm)[0]), pair.partner.limits, QUICK)


def _explains(pair: Pair, norm: Norm) -> bool:
    return _quick(pair, norm).is_right


def _judge_weight(pair: Pair, rows: Tensor, scan: Scan, pairs: list[Pair]) -> Fault:
    evidence: dict[str, Any] = {"correlation": scan.correlation, "relative_error": scan.relative_error}
    evidence["equal_share"] = scan.equal / max(1, scan.total)
    if not scan.finite:
        count = int((~torch.isfinite(rows)).sum())
        return "not_finite", f"{count} weights are NaN or infinite", {"count": count}
    if scan.is_right:
        formula = _formula_instead(pair, rows, scan)
        if formula is None:
            return _right(pair, scan, evidence)
        kind, sentence, more = formula
        return kind, sentence, {**evidence, **more}
    case = open_case(pair.layer, pair.partner, rows, scan, ~scan.right)
    from_integers = next((found for recognise in FROM_INTEGERS if (found := recognise(case))), None)
    found = from_integers or _of_other_layer(case, pairs) or _never_copied(case) or _other_values(case)
    kind, sentence, more = found
    return kind, sentence, {**evidence, **more}


def _right(pair: Pair, scan: Scan, evidence: dict[str, Any]) -> Fault:
    """Say which form of the weights it is."""
    evidence["max_steps"] = scan.max_steps
    if scan.equal == scan.total:
        evidence["form"], text = "dequantized", "bit-equal"
    elif scan.on_grid == scan.total:
        evidence["form"], text = "fake-quantized", "rounded as the integers are, but for float errors"
    else:
        evidence["form"] = "float" if pair.partner.limits is None else "prepared"
        text = f"at most {scan.max_steps:.2f} steps off"
    if scan.clipped:
        evidence |= {"clipped_weights": scan.clipped, "max_excess_steps": scan.max_excess}
        text += f", {scan.clipped} of {scan.total} clipped by up to {scan.max_excess:.3g} steps"
    if pair.use_folded:
        evidence |= {"norm": pair.norm, "eps": pair.eps}
        text += f", with {pair.norm} folded in"
    return "rounding", f"these weights are right ({text})", evidence


def _formula_instead(pair: Pair, rows: Tensor, scan: Scan) -> Verdict:
    """A wrong formula that gives every weight of channels whose weights are right for being clipped, mostly."""
    if not bool(scan.much_clipped.any()):
        return None
    return scaled_wrongly(open_case(pair.layer, pair.partner, rows, scan, scan.much_clipped))


def _of_other_layer(case: Case, pairs: list[Pair]) -> Verdict:
    for other in pairs:
        theirs = other.layer.ints
        same_form = other.layer.shape == case.layer.shape and theirs.values.shape == case.ints.values.shape
        if other.layer.path == case.layer.path or not same_form:
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
    text = f"the weight was never copied: it is still {initial}, correlation with the source"
    return "weight_not_copied", f"{text} {case.scan.correlation:.2f}", {"distribution": initial}


def _other_values(case: Case) -> Fault:
    if abs(case.scan.correlation) >= CORRELATED:
        share = case.scan.beyond / case.scan.total
        text = f"the weight was changed: {100 * case.scan.beyond / case.scan.total:.0f} % of its values are more than"
        text += f" half a step off, correlation {case.scan.correlation:.3f}"
        return "weight_altered", text, {"beyond_half_step": share}
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
    Kaiming's and Xavier's rules, and the normal ones of torchvision, by Kolmogorov's distance; and, as uniform,
    ``bounds``.
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
    bound = max(-low, high)
    kaiming = (1 / fan_in**0.5, (6 / fan_in) ** 0.5, (6 / fan_out) ** 0.5, (6 / (fan_in + fan_out)) ** 0.5)
    for size in (*bounds, *kaiming):
        if 0.5 * size < bound and _is_uniform(values, bound, size):
            return f"uniform within {size:.3g}, as initialised"
    normal = (0.01, 0.02, (2 / fan_out) ** 0.5, (2 / fan_in) ** 0.5, fan_in**-0.5, (2 / (fan_in + fan_out)) ** 0.5, 1.0)
    for std in normal:
        if _fits(values, 0.5 * (1 + torch.erf(values / (std * 2**0.5)))):
            return f"normal with standard deviation {std:.3g}, as initialised"
    return None


def _sorted_sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    if len(flat) > 65536:
        flat = flat[torch.randint(len(flat), (65536,), generator=torch.Generator().manual_seed(0))]
    return flat.double().sort().values


def _fits(values: Tensor, cumulative: Tensor) -> bool:
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = float(torch.maximum((steps[1:] - cumulative).abs(), (cumulative - steps[:-1]).abs()).max())
    # Distance that a sample of the right distribution exceeds once in about 2000 tries.
    return distance < 2.0 / math.sqrt(len(values))


def _is_uniform(values: Tensor, largest: float, bound: float) -> bool:
    return largest <= bound * (1 + 1e-6) and _fits(values, (values / bound + 1) / 2)


def _judge_bias(pair: Pair, pairs: list[Pair]) -> Verdict:
    source, bias = pair.layer.bias, pair.bias
    if source is None or float(source.abs().max()) == 0:
        if bias is None or float(bias.abs().max()) == 0:
            return None
        source = torch.zeros_like(bias) if source is None else source
    size = float(source.abs().max())
    note = ", the shift of the folded batch norm is in it" if pair.norm else ""
    if bias is None:
        return "bias_missing", f"the bias is missing (up to {size:.3g}{note})", {"largest": size}
    if bias.shape != source.shape:
        return "bias_wrong", f"the bias is {tuple(bias.shape)}, the int8 model has {tuple(source.shape)}", {}
    error = float((bias.float() - source).abs().max())
    evidence: dict[str, Any] = {"max_error": error, "largest": size}
    if not math.isfinite(error):
        return "not_finite", "the bias holds NaN or infinite values", {**evidence, "part": "bias"}
    # Bias is not quantized, yet folding a batch norm rounds it.
    if error <= 1e-4 * size + 1e-7:
        return None
    if float(bias.abs().max()) == 0:
        return "bias_zeroed", f"the bias is zero, in the int8 model up to {size:.3g}{note}", evidence
    for other in pairs:
        theirs = other.layer.bias
        if theirs is not None and other is not pair and torch.equal(theirs, bias.float()):
            return "bias_wrong", f"the bias is the one of {other.layer.path}", {**evidence, "holds": other.layer.path}
    bounds = rnn_bounds(pair.partner) or [math.prod(pair.partner.weight.shape[1:]) ** -0.5]
    if any(_is_uniform(bias.double().sort().values, float(bias.abs().max()), bound) for bound in bounds):
        return "bias_not_copied", "the bias was never copied: it is still uniform, as initialised", evidence
    return "bias_wrong", f"the bias differs by up to {error:.3g} (largest value {size:.3g})", evidence


def _find_swaps(findings: list[Finding]) -> None:
    holds = {item.module: item for item in findings if item.kind == "weight_of_other_layer"}
    for path, item in holds.items():
        other = item.evidence["holds"]
        if other in holds and holds[other].evidence["holds"] == path:
            item.kind = "weights_swapped"
            item.message = f"{path}: its weights and those of {other} are swapped"


def _find_other_checkpoint(findings: list[Finding]) -> None:
    """Every layer off at once is another checkpoint, whatever each one looks like alone."""
    judged = [item for item in findings if KINDS[item.kind].about == "weight"]
    altered = [item for item in judged if item.kind in ("weight_altered", "other_checkpoint", "weight_not_copied")]
    correlated = [item for item in altered if item.kind != "weight_not_copied"]
    if len(judged) < 2 or len(altered) < 0.8 * len(judged) or len(correlated) < 0.5 * len(judged):
        return
    for item in altered:
        item.kind = "other_checkpoint"
        text = f"{item.module}: the weights are those of a different checkpoint, as in every other layer"
        item.message = f"{text} (correlation {item.evidence['correlation']:.3f})"
        item.remedy = KINDS["other_checkpoint"].remedy


def _histogram(ints: Integers, rows: Tensor) -> dict[str, Any]:
    """Return a sample of the weights, in steps of their channel's scale, and of the integers; for the plot."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(max(1, rows.numel()), (min(PLOTTED, rows.numel()),), generator=generator)
    channels = places // max(1, rows.shape[1])
    centred = ints.values.reshape(-1)[places].double() - ints.zero_point[channels]
    weights = rows.reshape(-1)[places].double() / ints.scale[channels]
    return {"integers": centred.tolist(), "weights": weights.tolist()}
