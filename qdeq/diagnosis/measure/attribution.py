"""Attribution by repair: put the right value of a finding back and see how much of the disagreement disappears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from qdeq.diagnosis.findings.verdict import group_by_kind, order
from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.measure.imitation import Imitations
from qdeq.diagnosis.measure.running import OutputSums, forward
from qdeq.diagnosis.measure.watching import Answer
from qdeq.diagnosis.results import Finding
from qdeq.diagnosis.say.wording import join_names
from qdeq.diagnosis.sides.graph import light_copy

__all__ = ["Attribution", "attribute"]

# Accuracy counts as lost from this much on; a smaller loss is a few samples, and shares of it say nothing.
LEAST_LOSS = 0.02
# Repairs may cost this many forwards of the float model on all data. With the forward of the int8 model and the two of
# the float model before them the whole diagnosis stays within four forwards of both.
GROUP_FORWARDS = 0.9
SINGLE_FORWARDS = 0.4
# Little data of a small model may be run more often: this many samples, or weights times samples, whatever is less.
CHEAP_SAMPLES = 256
CHEAP_WEIGHTS = 1_000_000_000
# A measurement takes this many samples or more.
LEAST_SAMPLES = 4


@dataclass
class Attribution:
    """Which repair brings what."""

    # Kind -> share of the mean squared error of the output that is gone with all its findings repaired.
    groups: dict[str, float] = field(default_factory=dict)
    # Kind -> share of the lost accuracy, or of the lost top-1 agreement where the data has no labels, that comes back
    # with it; empty where none was lost.
    lost: dict[str, float] = field(default_factory=dict)
    # (name of the finding, share of the error that is gone) while findings are repaired in order.
    cumulative: list[tuple[str, float]] = field(default_factory=list)


def attribute(
    findings: list[Finding], repairs: Imitations, float_model: nn.Module, answers: list[Answer]
) -> Attribution:
    """Repair findings on copies of the float model and measure.

    Sets ``repair`` of each finding that can be repaired, in the order of the findings, as far as the number of
    forwards allows. Each measurement runs the first part of the data. The float model is left untouched.
    """
    result = Attribution()
    repairable = [item for item in findings if item.is_fault and repairs.of(item) is not None]
    if not repairable:
        return result
    bench = _Bench(repairs, float_model, answers, at_random=any(item.kind == "training_mode" for item in repairable))
    groups = group_by_kind(repairable)
    bench.plan(GROUP_FORWARDS, len(groups))
    for kind, items in groups.items():
        gone, lost = bench.gain(items)
        if gone is not None:
            result.groups[kind] = gone
        if lost is not None:
            result.lost[kind] = lost
    for item in repairable:
        item.repair = result.groups.get(item.kind) if len(groups[item.kind]) == 1 else None
    several = sum(len(items) for items in groups.values() if len(items) > 1)
    bench.plan(SINGLE_FORWARDS, several + len(repairable))
    done: list[Finding] = []
    for item in order(repairable, result.groups):
        done.append(item)
        if item.repair is None:
            item.repair = bench.gain([item])[0]
        gone = bench.gain(done)[0]
        if gone is not None:
            result.cumulative.append((f"{join_names([item.module])}: {KINDS[item.kind].phrase}", gone))
    return result


class _Bench:
    """Measures repaired copies of the float model against the answers of the int8 model."""

    def __init__(self, repairs: Imitations, float_model: nn.Module, answers: list[Answer], *, at_random: bool) -> None:
        self.repairs, self.float_model, self.answers, self.at_random = repairs, float_model, answers, at_random
        self.count = sum(len(answer.batch) for answer in answers)
        self.weights = sum(parameter.numel() for parameter in float_model.parameters())
        self.samples = self.left = 0
        self.before: dict[int, OutputSums] = {}

    def plan(self, forwards: float, measurements: int) -> None:
        """Share out this many forwards of the float model."""
        cheap = min(CHEAP_SAMPLES, CHEAP_WEIGHTS // max(1, self.weights))
        self.left = max(int(self.count * forwards), cheap)
        measurements += self.at_random
        self.samples = min(self.count, max(LEAST_SAMPLES, self.left // max(1, measurements)))

    def gain(self, items: list[Finding]) -> tuple[float | None, float | None]:
        """(share of the squared error gone, share of the lost accuracy or agreement back) with ``items`` repaired.

        Both are None where the forwards are used up, the second one where no accuracy was lost.
        """
        if self.left < self.samples:
            return None, None
        before, after = self._unrepaired(), self._measure(items)
        error = before.sums.error
        gone = 1 - after.sums.error / error if error > 0 else 0.0
        gone = gone if gone == gone and abs(gone) != float("inf") else 0.0
        return gone, _regained(before, after)

    def _unrepaired(self) -> OutputSums:
        if self.samples not in self.before:
            self.before[self.samples] = self._measure([]) if self.at_random else self._as_it_was()
        return self.before[self.samples]

    def _as_it_was(self) -> OutputSums:
        sums = OutputSums()
        for answer in self._parts():
            sums.add(answer.ours, answer.theirs, answer.batch.labels)
        return sums

    def _parts(self) -> Iterator[Answer]:
        left = self.samples
        for answer in self.answers:
            if left > 0:
                yield answer.first(left)
            left -= len(answer.batch)

    def _measure(self, items: list[Finding]) -> OutputSums:
        self.left -= self.samples
        model = light_copy(self.float_model)
        for item in items:
            if (repair := self.repairs.of(item)) is not None:
                repair(model)
        sums = OutputSums()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for answer in self._parts():
                sums.add(answer.ours, forward(model, answer.batch, "float_model"), answer.batch.labels)
        return sums


def _regained(before: OutputSums, after: OutputSums) -> float | None:
    old, new = before.outcome(), after.outcome()
    if old.accuracy_a is not None and old.accuracy_b is not None and new.accuracy_b is not None:
        lost = old.accuracy_a - old.accuracy_b
        return (new.accuracy_b - old.accuracy_b) / lost if lost >= LEAST_LOSS else None
    if old.top1_agreement is None or new.top1_agreement is None or old.top1_agreement > 1 - LEAST_LOSS:
        return None
    return (new.top1_agreement - old.top1_agreement) / (1 - old.top1_agreement)
