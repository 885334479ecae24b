"""Findings from the weights and biases alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdeq.diagnosis.findings.biases import judge_bias
from qdeq.diagnosis.findings.folding import best_scan
from qdeq.diagnosis.findings.initial import initial_distribution, rnn_bounds
from qdeq.diagnosis.findings.recognise import FROM_INTEGERS, Fault, Verdict, scaled_wrongly
from qdeq.diagnosis.findings.scan import Case, Scan, open_case
from qdeq.diagnosis.kinds import KINDS, REBUILD
from qdeq.diagnosis.results import Finding, Layer
from qdeq.diagnosis.sides.integers import Integers
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["finding", "weight_findings"]

CORRELATED = 0.5
# Weights of a layer that are kept for the plot.
PLOTTED = 4096


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
        rows, scan = best_scan(pair, ints)
        row.weight_equal = scan.equal / max(1, scan.total)
        row.weight_error_steps = max(scan.max_steps, scan.max_excess)
        histograms[path] = _histogram(ints, rows)
        findings.append(finding(pair, *_judge_weight(pair, rows, scan, pairs)))
        if bias := judge_bias(pair, pairs):
            findings.append(finding(pair, *bias, of_bias=True))
    _find_swaps(findings)
    _find_other_checkpoint(findings)
    return findings, table, histograms


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
        text += f", with {pair.norm or 'its batch norm'} folded in"
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
