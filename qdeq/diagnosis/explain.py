"""``explain``: why two models disagree; ``compare``: by how much, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdeq.diagnosis.explanation import Explanation, Finding
from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.pairs import match_layers
from qdeq.diagnosis.sides import IntegerLayer, integer_layers, open_side
from qdeq.diagnosis.structure import structure_findings
from qdeq.diagnosis.verdict import order, verdict
from qdeq.diagnosis.weights import weight_findings
from qdeq.errors import QdeqValueError, expected

__all__ = ["explain"]


def explain(
    int8_model: nn.Module | dict[str, Any] | str | Path,
    float_model: nn.Module | dict[str, Any] | str | Path,
    data: Tensor | tuple[Tensor, Tensor] | Iterable[Any] | None = None,
    *,
    layers: bool = True,
    trust: bool = False,
) -> Explanation:
    ours, theirs = open_side(int8_model, "int8_model", trust=trust), open_side(float_model, "float_model", trust=trust)
    quantized = integer_layers(ours)
    if not quantized:
        remedy = "Pass the converted model first and the float model second."
        raise QdeqValueError(expected("int8_model", "a model with quantized weights", "none", remedy))
    pairs, alone = match_layers(quantized, theirs)
    total = sum(layer.numel for layer in quantized)
    findings, table, histograms = weight_findings(pairs, total)
    findings += [_no_partner(layer, total) for layer in alone]
    right = {item.module for item in findings if item.kind == "rounding"}
    if theirs.model is not None:
        findings += structure_findings(ours.model, theirs.model, pairs, right, total)
    findings = order(findings, {})
    return Explanation(
        findings,
        list(table.values()) if layers else [],
        verdict(findings, {}, {}, None),
        unmatched=[layer.path for layer in alone],
        histograms=histograms,
    )


def _no_partner(layer: IntegerLayer, total: int) -> Finding:
    text = f"{layer.path}: no module of the float model has this name, and none that is left has its shape"
    evidence = {"shape": list(layer.shape)}
    return Finding(layer.path, "no_partner", text, evidence, layer.numel / max(1, total), None, KINDS["no_partner"].remedy)
