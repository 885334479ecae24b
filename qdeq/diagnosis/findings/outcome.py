"""Whether the outputs of both models say that the models disagree."""

from __future__ import annotations

from qdeq.diagnosis.results import Finding, Outcome, make_finding
from qdeq.diagnosis.say.wording import percent

__all__ = ["outputs_part", "why_parted"]

# The outputs part where the noise is a tenth of the signal's power,
LEAST_SQNR_DB = 10.0
# where fewer of the top-1 classes agree (good int8 models of hard data agree on about nine of ten),
LEAST_AGREEMENT = 0.9
# or where the accuracy differs by more than this. A smaller loss is what int8 costs.
MOST_LOSS = 0.02
# Shares of few samples are not believed: a difference has to be this many standard errors.
STANDARD_ERRORS = 2.0


def why_parted(outcome: Outcome) -> str:
    """What of the outcome says that the models disagree; empty where nothing does."""
    said = []
    if outcome.sqnr_db is not None and outcome.sqnr_db < LEAST_SQNR_DB:
        said.append(f"SQNR {outcome.sqnr_db:.1f} dB")
    elif outcome.sqnr_db is None and outcome.mean_abs != 0:
        said.append("the int8 output is zero" if outcome.mean_abs < float("inf") else "an output is not finite")
    agreement, samples = outcome.top1_agreement, max(1, outcome.samples)
    if agreement is not None:
        error = STANDARD_ERRORS * (LEAST_AGREEMENT * (1 - LEAST_AGREEMENT) / samples) ** 0.5
        if agreement < LEAST_AGREEMENT - error:
            said.append(f"top-1 agreement {percent(agreement)}")
        if outcome.accuracy_a is not None and outcome.accuracy_b is not None:
            # The samples on which both differ are at most those on which one is right and the other is not.
            error = STANDARD_ERRORS * ((1 - agreement) / samples) ** 0.5
            if abs(outcome.accuracy_a - outcome.accuracy_b) > max(MOST_LOSS, error):
                said.append(f"accuracy {percent(outcome.accuracy_a)} and {percent(outcome.accuracy_b)}")
    return ", ".join(said)


def outputs_part(why: str, first: str | None) -> Finding:
    """The finding for outputs that part without a cause that stands out."""
    text = f"the outputs of the two models part ({why}), and no single cause stands out"
    text += f"; the first module where they do is {first}" if first else ""
    return make_finding("", "outputs_part", text, {"why": why, "first": first})
