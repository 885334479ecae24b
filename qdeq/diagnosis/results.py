"""What a diagnosis finds, as plain data: findings, rows of the table of layers, outcomes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qdeq.diagnosis.kinds import KINDS

__all__ = ["Cost", "ExplanationData", "Finding", "Layer", "Outcome", "Sensitivity", "make_finding"]


@dataclass
class Finding:
    """One thing that is wrong, or one layer that is right.

    Attributes:
        module: dotted path in the int8 model; empty for the model itself.
        kind: one of :data:`qdeq.diagnosis.kinds.KINDS`.
        message: what is wrong, in one sentence.
        evidence: name -> number, string or list of them.
        share: how many of the model's weights this is about, 0 to 1: the module's weights, or as many as it has biases.
        repair: share of the disagreement (mean squared error of the output) that disappears when only this is put
            right, at most 1 and negative where it grows; None without data.
        remedy: a line of code.

    """

    module: str
    kind: str
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)
    share: float = 0.0
    repair: float | None = None
    remedy: str = ""

    @property
    def is_fault(self) -> bool:
        """False for rounding and clipping, which every int8 model has."""
        return not KINDS[self.kind].benign


def make_finding(module: str, kind: str, message: str, evidence: dict[str, Any], share: float = 0.0) -> Finding:
    """Return a finding with the remedy of its kind."""
    remedy = KINDS[kind].remedy.format(module=module, **evidence)
    return Finding(module, kind, message, evidence, share, None, remedy)


@dataclass
class Layer:
    """One layer of both models; numbers from running them are None without data.

    Attributes:
        module: dotted path in the first model.
        partner: dotted path in the second model.
        class_a: class of the module in the first (int8) model.
        class_b: class of the module in the second (float) model.
        weights: how many weights the layer has.
        weight_equal: share of the weights that are equal bit for bit; None where it was not counted.
        weight_error_steps: largest difference of a weight, in units of its channel's scale.
        sqnr_db: signal to quantization noise ratio of the output in dB: 10 log10(sum a^2 / sum (a - b)^2).
        mean_abs: mean absolute difference of the output.
        max_abs: largest absolute difference of the output.
        cosine: cosine of the angle between both outputs.
        clipped: share of the second model's values outside what the first model's output can represent.
        introduced: error that the layer itself makes on the first model's input, as root mean square relative to
            the root mean square of the first model's output.
        inherited: error that arrives with the second model's own input and passes the layer, in the same unit.
        low: smallest value of the second model's output.
        high: largest value of the second model's output.
        low_representable: smallest value that the first model's output can represent.
        high_representable: largest value that the first model's output can represent.

    """

    module: str
    partner: str
    class_a: str = ""
    class_b: str = ""
    weights: int = 0
    weight_equal: float | None = None
    weight_error_steps: float | None = None
    sqnr_db: float | None = None
    mean_abs: float | None = None
    max_abs: float | None = None
    cosine: float | None = None
    clipped: float | None = None
    introduced: float | None = None
    inherited: float | None = None
    low: float | None = None
    high: float | None = None
    low_representable: float | None = None
    high_representable: float | None = None


@dataclass
class Outcome:
    """The outputs of both models on the data.

    Attributes:
        samples: how many samples were run.
        sqnr_db: signal to quantization noise ratio in dB, the first model being the signal.
        mean_abs: mean absolute difference.
        max_abs: largest absolute difference.
        cosine: cosine of the angle between both outputs.
        top1_agreement: share of rows whose largest value is at the same place; None for outputs that are not (n, c).
        accuracy_a: share of right rows of the first model; None without labels.
        accuracy_b: the same of the second model.

    """

    samples: int
    sqnr_db: float | None
    mean_abs: float
    max_abs: float
    cosine: float
    top1_agreement: float | None = None
    accuracy_a: float | None = None
    accuracy_b: float | None = None


@dataclass
class Cost:
    """What a change of the float model costs.

    Attributes:
        noise: power of the change of the output, relative to the output's.
        sqnr_db: the same in dB; None where nothing changes, or nothing but zeros is left.
        top1_agreement: share of rows whose largest value stays at its place; None for outputs that are not (n, c).
        accuracy: share of right rows after the change; None without labels.

    """

    noise: float
    sqnr_db: float | None
    top1_agreement: float | None = None
    accuracy: float | None = None


@dataclass
class Sensitivity:
    """What quantizing one module costs, all others being left in float.

    Attributes:
        module: dotted path in the int8 model.
        weights: of rounding its weights; None where it has none, or where both were rounded together.
        activations: of rounding its output; None for a float output, or where both were rounded together.
        together: of rounding both; None where they were rounded apart.

    """

    module: str
    weights: Cost | None = None
    activations: Cost | None = None
    together: Cost | None = None

    @property
    def noise(self) -> float:
        """The largest noise of the three."""
        return max((cost.noise for cost in (self.weights, self.activations, self.together) if cost), default=0.0)


@dataclass
class ExplanationData:
    """The fields of :class:`qdeq.Explanation`, which says what they are."""

    findings: list[Finding]
    layers: list[Layer]
    verdict: str
    outcome: Outcome | None = None
    first_divergence: str | None = None
    cumulative: list[tuple[str, float]] = field(default_factory=list)
    regained: dict[str, float] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    # What the pictures need: module -> histogram of the weights; kept out of to_dict().
    histograms: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def agrees(self) -> bool:
        """Whether nothing but rounding and clipping was found."""
        return not any(finding.is_fault for finding in self.findings)
