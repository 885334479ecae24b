"""What running both models says beyond the weights: whether the outputs part, and what that comes from."""

from __future__ import annotations

from torch import nn

from qdeq.diagnosis.findings.levels import collapsed_findings
from qdeq.diagnosis.findings.outcome import outputs_part, why_parted
from qdeq.diagnosis.measure.activations import first_divergence
from qdeq.diagnosis.measure.attribution import Attribution
from qdeq.diagnosis.measure.between import between_findings, output_findings, random_findings
from qdeq.diagnosis.measure.calibration import calibration_findings, fits
from qdeq.diagnosis.measure.imitation import IMITATED
from qdeq.diagnosis.measure.running import OutputSums
from qdeq.diagnosis.measure.watching import Answer, Watch
from qdeq.diagnosis.results import Finding
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["Run", "accuse", "acquit"]

# A fault of the int8 model is believed where the float model, given the same fault, loses this share of the difference;
LEAST_SHARE = 0.1
# of several of one kind each has to bring this much itself once another one brings most of it.
LEAST_OWN_SHARE, MOST = 0.02, 0.3
# What lies between the layers is looked at where the faults found so far are not half of the difference.
EXPLAINED = 0.5


class Run:
    """Both models, and what came of running them."""

    def __init__(
        self,
        models: tuple[nn.Module, nn.Module],
        watches: list[Watch],
        outputs: OutputSums,
        answers: list[Answer],
    ) -> None:
        self.int8_model, self.float_model = models
        self.watches, self.outputs, self.answers = watches, outputs, answers
        shapes = outputs.shapes
        self.outcome = None if shapes else outputs.outcome()
        self.why = f"shapes {shapes[0]} and {shapes[1]}" if shapes else why_parted(outputs.outcome())
        self.first = first_divergence(watches)
        # Where the forwards differ between layers: weights that are wrong may look alike.
        self.parting = between_findings(watches) if self.why else []


def accuse(run: Run, findings: list[Finding], pairs: list[Pair]) -> list[Finding]:
    """Return the findings with those that the outputs call for, where they part, and without those that they refute.

    A few outputs that look uncalibrated and fit their values all the same are right; clipping that is a fault is not
    said twice.
    """
    grids = {watch.path: watch.grid for watch in run.watches if watch.grid is not None}
    few = 2 * sum(item.module in grids for item in findings if item.kind == "never_calibrated") < len(grids)
    kept = [
        item
        for item in findings
        if item.kind != "never_calibrated" or (item.module in grids and not (few and fits(grids[item.module])))
    ]
    if not run.why:
        return kept
    right = {item.module for item in kept if item.kind == "rounding"}
    known = {item.module for item in kept if item.kind == "never_calibrated"}
    found = calibration_findings(_before(run)) if run.parting else calibration_findings(run.watches)
    found = [item for item in found if item.module not in known]
    found += collapsed_findings(pairs, right)
    accused = {item.module for item in found if item.kind == "calibrated_narrow"}
    return [item for item in kept if item.kind != "clipping" or item.module not in accused] + found


def _before(run: Run) -> list[Watch]:
    """The modules in front of the place where the forwards differ; those behind it get values of another kind."""
    places = [watch.place for watch in run.watches if watch.path == run.parting[0].module]
    return [watch for watch in run.watches if watch.place < places[0]]


def acquit(run: Run, findings: list[Finding], repaired: Attribution) -> list[Finding]:
    """Leave out faults of the int8 model that cause nothing; look between the layers for what the rest leaves open.

    Where then no fault explains outputs that part, say so.
    """
    kept = [item for item in findings if item.kind not in IMITATED or _causes_something(item, findings, repaired)]
    if not run.why:
        return kept
    explained = max((gone for _, gone in repaired.cumulative), default=0.0) >= EXPLAINED
    # Nothing can be put right about a kernel of torch, and what lies behind it parts for that reason.
    if not explained and not any(item.kind == "int8_kernel_wrong" for item in kept):
        if not any(item.kind == "training_mode" for item in kept):
            kept += random_findings(run.int8_model, run.float_model, run.answers)
        kept += run.parting or output_findings(run.watches, run.outputs, run.answers)
    if not any(item.is_fault for item in kept):
        kept.append(outputs_part(run.why, run.first))
    return kept


def _causes_something(item: Finding, findings: list[Finding], repaired: Attribution) -> bool:
    if item.kind == "never_calibrated":  # that is seen, not concluded
        return True
    together = repaired.groups.get(item.kind)
    if together is not None and together < LEAST_SHARE:
        return False
    others = [other.repair or 0.0 for other in findings if other.kind == item.kind]
    return item.repair is None or item.repair >= LEAST_OWN_SHARE or max(others) < MOST
