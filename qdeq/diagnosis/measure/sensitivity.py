"""What each layer's quantization costs: the float model with one layer quantized at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from qdeq.diagnosis.measure.imitation import Imitations
from qdeq.diagnosis.measure.repair import Repair
from qdeq.diagnosis.measure.running import OutputSums, forward
from qdeq.diagnosis.measure.watching import Answer, Watch
from qdeq.diagnosis.results import Cost, Sensitivity
from qdeq.diagnosis.sides.graph import light_copy
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["Progress", "sensitivities"]

# Called with the path of a module, how many measurements are done, and how many there are.
Progress = Callable[[str, int, int], object]


def sensitivities(
    imitations: Imitations,
    float_model: nn.Module,
    watches: Iterable[Watch],
    pairs: Iterable[Pair],
    answers: list[Answer],
    *,
    apart: bool,
    progress: Progress | None,
) -> list[Sensitivity]:
    """Measure every quantized module, the most expensive first; one forward of the float model for each change.

    With ``apart`` weights and outputs are rounded one at a time, otherwise both of a module at once. Each change is
    made to a copy that shares all other parameters with the float model, and compared with the outputs that the float
    model gave.
    """
    tasks = [
        (path, part, changes) for path, parts in _changes(imitations, watches, pairs, apart) for part, changes in parts
    ]
    rows: dict[str, Sensitivity] = {}
    for number, (path, part, changes) in enumerate(tasks, 1):
        setattr(rows.setdefault(path, Sensitivity(path)), part, _cost(float_model, changes, answers))
        if progress is not None:
            progress(path, number, len(tasks))
    return sorted(rows.values(), key=lambda row: row.noise, reverse=True)


def _changes(
    imitations: Imitations, watches: Iterable[Watch], pairs: Iterable[Pair], apart: bool
) -> Iterable[tuple[str, list[tuple[str, list[Repair]]]]]:
    """Path of a module -> the name of each measurement and the changes that it makes."""
    weights: dict[str, list[Repair]] = {}
    for pair in pairs:
        change = imitations.weights(pair.layer.path)
        weights.setdefault(pair.layer.module, []).extend([change] if change else [])
    outputs = {watch.path: change for watch in watches if (change := imitations.rounding(watch.path))}
    for path in dict.fromkeys((*weights, *outputs)):
        own, output = weights.get(path, []), [outputs[path]] if path in outputs else []
        parts = {"weights": own, "activations": output} if apart else {"together": own + output}
        yield path, [(name, changes) for name, changes in parts.items() if changes]


def _cost(float_model: nn.Module, changes: list[Repair], answers: list[Answer]) -> Cost:
    model: Any = light_copy(float_model)
    for change in changes:
        change(model)
    sums = OutputSums()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for answer in answers:
            sums.add(answer.theirs, forward(model, answer.batch, "float_model"), answer.batch.labels)
    outcome = sums.outcome()
    return Cost(sums.sums.noise, outcome.sqnr_db, outcome.top1_agreement, outcome.accuracy_b)
