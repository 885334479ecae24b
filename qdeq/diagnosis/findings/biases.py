"""Findings about a layer's bias, which torch does not quantize, and ONNX rounds to the step of the layer's sums."""

from __future__ import annotations

import math
from typing import Any

import torch

from qdeq.diagnosis.findings.initial import is_uniform, rnn_bounds
from qdeq.diagnosis.findings.recognise import Verdict
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["judge_bias"]


def judge_bias(pair: Pair, pairs: list[Pair]) -> Verdict:
    """Compare the bias that the float side applies with the int8 one; None where it is right."""
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
    # Folding a batch norm rounds a bias that is not quantized, too.
    half_step = 0.0 if pair.layer.bias_step is None else pair.layer.bias_step / 2
    if bool(((bias.float() - source).abs() - half_step <= 1e-4 * size + 1e-7).all()):
        return None
    if float(bias.abs().max()) == 0:
        return "bias_zeroed", f"the bias is zero, in the int8 model up to {size:.3g}{note}", evidence
    for other in pairs:
        theirs = other.layer.bias
        if theirs is not None and other is not pair and torch.equal(theirs, bias.float()):
            return "bias_wrong", f"the bias is the one of {other.layer.path}", {**evidence, "holds": other.layer.path}
    bounds = rnn_bounds(pair.partner) or [math.prod(pair.partner.weight.shape[1:]) ** -0.5]
    if any(is_uniform(bias.double().sort().values, float(bias.abs().max()), bound) for bound in bounds):
        return "bias_not_copied", "the bias was never copied: it is still uniform, as initialised", evidence
    return "bias_wrong", f"the bias differs by up to {error:.3g} (largest value {size:.3g})", evidence
