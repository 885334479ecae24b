"""Findings about what the forwards do beside the layers: before the first one, between two, behind the last one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.diagnosis.measure.running import OutputSums, Sums, forward
from qdeq.diagnosis.measure.watching import Answer, Watch
from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.graph import light_copy

__all__ = ["between_findings", "output_findings", "random_findings"]

# Values part where their difference is a tenth of their power (10 dB), and agree where it is a thirtieth (15 dB) and a
# tenth of what it is behind: int8 alone grows by less from a layer to the next.
PARTED, AGREED, JUMP = 0.1, 10**-1.5, 10.0
# What is left of a difference that one factor explains, as a share of the power.
EXPLAINED = 0.05

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda value: F.softmax(value, -1),
    "log_softmax": lambda value: F.log_softmax(value, -1),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


def random_findings(int8_model: nn.Module, float_model: nn.Module, answers: list[Answer]) -> list[Finding]:
    """Name a model that gives other outputs for the same inputs: it draws at random, or keeps a state."""
    found = []
    for name, model, number in (("int8_model", int8_model, 0), ("float_model", float_model, 1)):
        batch = answers[0].first(8).batch
        sums, model = Sums(), light_copy(model)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            sums.add(forward(model, batch, name), forward(model, batch, name))
        if sums.noise < EXPLAINED:
            continue
        training = any(module.training for module in model.modules())
        advice = "dropout in the forward needs training=self.training"
        text = f"the {('int8', 'float')[number]} model gives other outputs for the same inputs"
        text += ", a part of it is in training mode" if training else ", though it is in eval mode"
        evidence = {"side": name, "training": training, "sqnr_db": sums.sqnr_db, "advice": advice}
        found.append(make_finding("", "draws_at_random", text, evidence))
    return found


def between_findings(watches: list[Watch]) -> list[Finding]:
    """Name the first layer whose input parts although all outputs before it agree."""
    worst, before = 0.0, ""
    for watch in watches:
        noise = watch.inputs.noise if watch.inputs.count else 0.0
        if noise > PARTED and worst < min(AGREED, noise / JUMP):
            return [_between(watch, before)]
        if watch.holds_weights:
            worst = max(worst, watch.total.noise)
        elif watch.grid is not None:  # what it is given may be what differs: only what it makes of it is its own
            worst = max(worst, watch.grid.rounding_noise, watch.grid.clipping_noise)
        before = watch.path if watch.total.count and watch.pair is not None else before
    return []


def _between(watch: Watch, before: str) -> Finding:
    sums = watch.inputs
    evidence: dict[str, Any] = {"before": before, "input_sqnr_db": sums.sqnr_db, **_factor(sums)}
    where = f"between {before} and {watch.path}" if before else "before it, the first layer of both"
    text = f"{watch.path}: the two models feed it different values: their forwards differ {where}"
    if evidence["factor"]:
        text += f"; the float model's are {_times(evidence['factor'])} the int8 model's"
    evidence["advice"] = f"make both forwards alike {where.replace('it, the', f'{watch.path}, the')}"
    share = 0.0 if watch.pair is None else watch.pair.layer.numel / watch.pair.total
    return make_finding(watch.path, "differs_between" if before else "differs_before", text, evidence, share)


def _factor(sums: Sums) -> dict[str, Any]:
    """The factor by which one side's values are the other's; None where none explains the difference."""
    if not (sums.aa > 0 and sums.bb > 0 and math.isfinite(sums.bb)):
        return {"factor": None}
    unexplained = 1 - sums.ab**2 / (sums.aa * sums.bb)
    return {"factor": sums.ab / sums.aa if unexplained < EXPLAINED else None}


def _times(factor: float) -> str:
    return f"1 / {1 / factor:.3g} of" if 0 < abs(factor) < 1 else f"{factor:.3g} times"


def output_findings(watches: list[Watch], outputs: OutputSums, answers: list[Answer]) -> list[Finding]:
    """Name the last layer where all layers agree and the outputs do not."""
    layers = [watch for watch in watches if watch.pair is not None and watch.total.count]
    if not layers:
        return []
    worst, noise = max(watch.total.noise for watch in layers), outputs.sums.noise
    shapes = outputs.shapes
    if worst > AGREED or (shapes is None and (noise <= PARTED or worst > noise / JUMP)):
        return []
    evidence: dict[str, Any] = {"sqnr_db": outputs.sums.sqnr_db, "shapes": shapes and [list(shape) for shape in shapes]}
    text = f"{layers[-1].path}: all layers agree, yet the outputs differ behind this last one: "
    if shapes is None:
        evidence |= _factor(outputs.sums) | {"function": _function(answers)}
        text += _relation(evidence)
    else:
        text += f"the int8 model's is {shapes[0]}, the float model's {shapes[1]}"
    evidence["advice"] = f"make both forwards alike behind {layers[-1].path}"
    return [make_finding(layers[-1].path, "differs_after", text, evidence)]


def _relation(evidence: dict[str, Any]) -> str:
    if evidence["function"]:
        return str(evidence["function"])
    if evidence["factor"]:
        return f"the float model's are {_times(evidence['factor'])} the int8 model's"
    return "no function that is known makes the one of the other"


def _function(answers: list[Answer]) -> str | None:
    """What makes one output of the other, in words; None where no known function does."""
    ours, theirs = (torch.cat([getattr(answer, name) for answer in answers]) for name in ("ours", "theirs"))
    for name, function in _FUNCTIONS.items():
        for source, result, text in (
            (ours, theirs, "the float model applies"),
            (theirs, ours, "the int8 model applies"),
        ):
            sums = Sums()
            sums.add(result, function(source))
            if sums.noise < EXPLAINED:
                return f"{text} {name}, the other does not"
    return None
