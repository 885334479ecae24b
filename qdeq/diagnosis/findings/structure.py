"""Findings from what surrounds the weights: activations, batch norm, training mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from qdeq.diagnosis.findings.stubs import stub_findings
from qdeq.diagnosis.findings.weights import finding
from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.graph import Activation, activation_name, activations_behind
from qdeq.diagnosis.sides.pairs import Pair
from qdeq.tree.tracing import Traces

__all__ = ["structure_findings"]

# Applying these twice is the same as once.
_IDEMPOTENT = ("ReLU", "ReLU6", "Hardtanh")


def structure_findings(
    int8_model: nn.Module | None, float_model: nn.Module, pairs: list[Pair], right: set[str]
) -> list[Finding]:
    """Compare what happens behind each pair of layers; activations are not where only the int8 state_dict is known.

    ``right`` holds the paths of the layers whose weights are right.
    """
    findings = _training_mode(float_model)
    findings += [found for pair in pairs if pair.layer.path in right and (found := _norm_twice(pair)) is not None]
    if int8_model is not None:
        findings += stub_findings(int8_model, float_model)
        findings += _activations(int8_model, float_model, pairs)
    return findings


def _training_mode(model: nn.Module) -> list[Finding]:
    found = []
    for path, module in model.named_modules():
        name = type(module).__name__
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        norms = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        if module.training and (drops or norms or isinstance(module, nn.RReLU)):
            effect = "drops values at random" if drops else "uses the batch's own statistics"
            text = f"{path}: {name} is in training mode, it {effect}"
            evidence = {"class": name, "p": module.p} if drops else {"class": name}
            found.append(make_finding(path, "training_mode", text, evidence))
    return found


def _norm_twice(pair: Pair) -> Finding | None:
    if pair.norm_factor is None or pair.use_folded or pair.norm_is_identity:
        return None
    factor = pair.norm_factor[0]
    text = f"the weight contains its batch norm already, and {pair.norm} applies it again"
    evidence = {"norm": pair.norm, "smallest_factor": float(factor.min()), "largest_factor": float(factor.max())}
    return finding(pair, "bn_applied_twice", text, evidence)


def _activations(int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair]) -> list[Finding]:
    ours, theirs = Traces(int8_model).whole, Traces(float_model).whole
    findings = []
    handled: set[str] = set()
    for pair in pairs:
        if ours is None or theirs is None:
            break
        if not pair.alone:
            continue
        wanted = activations_behind(ours, int8_model, pair.layer.path)
        actual = activations_behind(theirs, float_model, pair.partner.path)
        if wanted is None or actual is None:
            continue
        handled.update(item.path for item in wanted)
        found = _compare(pair, _collapse(wanted), _collapse(actual))
        if found is not None:
            findings.append(found)
    return findings + _lost_in_place(int8_model, float_model, handled)


def _collapse(chain: list[Activation]) -> list[Activation]:
    """Drop an idempotent activation that follows itself: a doubled ReLU changes nothing."""
    return [
        item for i, item in enumerate(chain) if not (i and item.name in _IDEMPOTENT and chain[i - 1].name == item.name)
    ]


def _compare(pair: Pair, wanted: list[Activation], actual: list[Activation]) -> Finding | None:
    names, got = [item.name for item in wanted], [item.name for item in actual]
    if names == got:
        return None
    position = next((i for i, (a, b) in enumerate(zip(names, got, strict=False)) if a != b), min(len(names), len(got)))
    extra = actual[position] if position < len(actual) else None
    evidence: dict[str, Any] = {"int8": names, "float": got}
    if len(got) > len(names) and extra is not None:
        doubled = position > 0 and extra.name == got[position - 1]
        kind = "activation_doubled" if doubled else "activation_added"
        text = f"the float model applies {extra.name} {'twice' if doubled else 'where the int8 model has none'}"
        found = finding(pair, kind, text, {**evidence, "extra": extra.path})
        if doubled and wanted[position - 1].path:
            found.module = wanted[position - 1].path
        return found
    lost = wanted[min(position, len(wanted) - 1)]
    owner = lost.path or pair.layer.path
    if owner == pair.layer.path:
        text = f"{pair.layer.class_name.rpartition('.')[2]} applies {lost.name} itself, the float model has none there"
    else:
        text = f"the int8 model applies {lost.name} ({owner}), the float model has none there"
    evidence |= {"activation": lost.name, "layer": pair.layer.path}
    found = finding(pair, "activation_lost", text, evidence)
    found.module = owner
    return found


def _lost_in_place(int8_model: nn.Module, float_model: nn.Module, handled: set[str]) -> list[Finding]:
    """Activation modules of the int8 model that are an Identity in the float one."""
    others = dict(float_model.named_modules())
    found = []
    for path, module in int8_model.named_modules():
        name = activation_name(module)
        if not name or path in handled or type(others.get(path)) is not nn.Identity:
            continue
        text = f"{path}: the int8 model applies {name} here, the float model has an Identity"
        found.append(make_finding(path, "activation_lost", text, {"activation": name}))
    return found
