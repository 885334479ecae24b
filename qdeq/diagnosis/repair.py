"""Attribution by repair: put the right value of a finding back and see how much of the disagreement disappears."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.diagnosis.explanation import Finding
from qdeq.diagnosis.graph import light_copy
from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.pairs import Pair
from qdeq.diagnosis.running import Batch, OutputSums, forward
from qdeq.diagnosis.sides import fused_activation
from qdeq.diagnosis.text import join_names
from qdeq.diagnosis.verdict import group_by_kind, order

__all__ = ["Attribution", "attribute"]

# Accuracy counts as lost from this much on; a smaller loss is a few samples, and shares of it say nothing.
LEAST_LOSS = 0.02
# Repairs may cost this many forwards of the float model on all data, together; with the two forwards of each model
# before them the whole diagnosis stays within four forwards of both.
GROUP_FORWARDS = 1.5
SINGLE_FORWARDS = 0.5
_WEIGHT_KINDS = ("weight", "channels", "other_", "scale", "zero_point", "flatten", "not_finite")


class Attribution:
    """Which repair brings what.

    Attributes:
        groups: kind -> share of the mean squared error of the output that is gone with all its findings repaired.
        lost: kind -> share of the lost accuracy, or of the lost top-1 agreement where the data has no labels, that
            comes back with it; empty where none was lost.
        cumulative: (name of the finding, share of the error that is gone) while findings are repaired in order.

    """

    def __init__(self) -> None:
        self.groups: dict[str, float] = {}
        self.lost: dict[str, float] = {}
        self.cumulative: list[tuple[str, float]] = []


def attribute(
    findings: list[Finding], pairs: list[Pair], int8_model: nn.Module, float_model: nn.Module, data: list[Batch]
) -> Attribution:
    """Repair findings on copies of the float model and measure.

    Sets ``repair`` of each finding that can be repaired. Each measurement runs the first part of the data, as large
    as the number of measurements allows.

    Args:
        findings: in any order.
        pairs: the layers.
        int8_model: gives the right values.
        float_model: left untouched.
        data: batches.

    """
    result = Attribution()
    by_path = {pair.layer.path: pair for pair in pairs}
    repairable = [item for item in findings if item.is_fault and _repair_of(item, by_path, int8_model) is not None]
    if not repairable:
        return result
    bench = _Bench(int8_model, float_model, by_path, data)
    groups = group_by_kind(repairable)
    samples = bench.share_of_samples(GROUP_FORWARDS / len(groups))
    for kind, items in groups.items():
        result.groups[kind], lost = bench.gain(items, samples)
        if lost is not None:
            result.lost[kind] = lost
    samples = bench.share_of_samples(SINGLE_FORWARDS / (2 * len(repairable)))
    for item in repairable:
        alone = len(groups[item.kind]) == 1
        item.repair = result.groups[item.kind] if alone else bench.gain([item], samples)[0]
    done: list[Finding] = []
    for item in order(repairable, result.groups):
        done.append(item)
        result.cumulative.append(
            (f"{join_names([item.module])}: {KINDS[item.kind].phrase}", bench.gain(done, samples)[0])
        )
    return result


class _Bench:
    """Measures repaired copies of the float model against outputs of the int8 model that are computed once."""

    def __init__(
        self, int8_model: nn.Module, float_model: nn.Module, pairs: dict[str, Pair], data: list[Batch]
    ) -> None:
        self.int8_model, self.float_model, self.pairs = int8_model, float_model, pairs
        self.inputs = torch.cat([batch.inputs for batch in data])
        labels = [batch.labels for batch in data if batch.labels is not None]
        self.labels = torch.cat(labels) if len(labels) == len(data) else None
        self.wanted: Tensor | None = None
        self.before: dict[int, OutputSums] = {}

    def share_of_samples(self, share: float) -> int:
        """How many samples ``share`` of the data are, at least eight if there are that many."""
        count = len(self.inputs)
        return min(count, max(8, int(count * share)))

    def gain(self, items: list[Finding], samples: int) -> tuple[float, float | None]:
        """(share of the squared error gone, share of the lost accuracy or agreement back) with ``items`` repaired."""
        if samples not in self.before:
            self.before[samples] = self._measure([], samples)
        before, after = self.before[samples], self._measure(items, samples)
        error = before.sums.error
        gone = 1 - after.sums.error / error if error > 0 else 0.0
        gone = gone if gone == gone and abs(gone) != float("inf") else 0.0
        return gone, _regained(before, after)

    def _measure(self, items: list[Finding], samples: int) -> OutputSums:
        model = light_copy(self.float_model)
        for item in items:
            repair = _repair_of(item, self.pairs, self.int8_model)
            if repair is not None:
                repair(model)
        sums = OutputSums()
        inputs = self.inputs[:samples]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.wanted is None or len(self.wanted) < samples:
                self.wanted = forward(light_copy(self.int8_model), inputs, "int8_model")
            sums.add(self.wanted[:samples], forward(model, inputs, "float_model"), _first(self.labels, samples))
        return sums


def _first(labels: Tensor | None, samples: int) -> Tensor | None:
    return None if labels is None else labels[:samples]


def _regained(before: OutputSums, after: OutputSums) -> float | None:
    old, new = before.outcome(), after.outcome()
    if old.accuracy_a is not None and old.accuracy_b is not None and new.accuracy_b is not None:
        lost = old.accuracy_a - old.accuracy_b
        return (new.accuracy_b - old.accuracy_b) / lost if lost >= LEAST_LOSS else None
    if old.top1_agreement is None or new.top1_agreement is None or old.top1_agreement > 1 - LEAST_LOSS:
        return None
    return (new.top1_agreement - old.top1_agreement) / (1 - old.top1_agreement)


Repair = Callable[[nn.Module], Any]


def _repair_of(item: Finding, pairs: dict[str, Pair], int8_model: nn.Module) -> Repair | None:
    """Return what puts the right value of a finding into a copy of the float model; None where nothing can."""
    if item.kind == "training_mode":
        return lambda model: model.get_submodule(item.module).eval()
    if item.kind == "activation_lost":
        return _repair_activation(item, pairs, int8_model)
    if item.kind in ("activation_doubled", "activation_added"):
        extra = item.evidence.get("extra", "")
        return (lambda model: model.set_submodule(extra, nn.Identity())) if extra else None
    pair = pairs.get(item.module)
    if pair is None or item.kind in ("shape_mismatch", "saturation", "run_failed"):
        return None
    if item.kind == "bn_applied_twice":
        return lambda model: model.set_submodule(pair.norm, nn.Identity())
    if item.kind.startswith("bias"):
        return lambda model: _set(model, pair, bias=True)
    return (lambda model: _set(model, pair, bias=False)) if item.kind.startswith(_WEIGHT_KINDS) else None


def _repair_activation(item: Finding, pairs: dict[str, Pair], int8_model: nn.Module) -> Repair:
    path = item.module
    if path in pairs:
        path = pairs[path].norm or pairs[path].partner.path
    owner = int8_model.get_submodule(item.module)
    if item.evidence["activation"] == "LeakyReLU":
        slope = float(getattr(owner, "negative_slope", 0.01))
        apply: Callable[[Tensor], Tensor] = lambda y: F.leaky_relu(y, slope)  # noqa: E731
    else:
        apply = getattr(nn, item.evidence["activation"])()
    # A float Identity where the activation was: its neighbour in front serves as well if it is missing altogether.
    present = item.evidence.get("layer", path)

    def repair(model: nn.Module) -> None:
        names = dict(model.named_modules())
        at = names.get(path) or names[pairs[present].partner.path]
        at.register_forward_hook(lambda module, args, output: apply(output))

    return repair


def _set(model: nn.Module, pair: Pair, *, bias: bool) -> None:
    module = model.get_submodule(pair.partner.path)
    if pair.use_folded or isinstance(getattr(module, "bn", None), nn.modules.batchnorm._BatchNorm):
        _override(model, module, pair)
    elif bias:
        right = pair.layer.bias
        module._parameters["bias"] = None if right is None else nn.Parameter(right.clone(), requires_grad=False)
    else:
        value = pair.layer.ints.reference().to(pair.partner.weight.dtype)
        module._parameters["weight"] = nn.Parameter(value, requires_grad=False)


def _override(model: nn.Module, module: Any, pair: Pair) -> None:
    """Let a layer with its batch norm unfolded compute with the int8 side's folded weight and bias.

    The instance's own ``forward`` takes over, so that hooks (fake quantization) still run behind it.
    """
    weight, bias = pair.layer.ints.reference(), pair.layer.bias
    activation = torch.relu if fused_activation(module) else (lambda value: value)

    def run(x: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return activation(F.linear(x, weight, bias))
        return activation(module._conv_forward(x, weight, bias))

    module.forward = run
    if pair.use_folded:
        model.set_submodule(pair.norm, nn.Identity())
