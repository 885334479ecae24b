"""Puts findings in order and says in one sentence what they come to."""

from __future__ import annotations

from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.results import Finding, Outcome
from qdeq.diagnosis.say.wording import join_names, percent

__all__ = ["group_by_kind", "order", "verdict"]

MOST_GROUPS = 3
# What in the evidence says how much of its module a finding is about, 0 to 1.
_HOW_BAD = ("relative_error", "clipped_share")


def group_by_kind(findings: list[Finding]) -> dict[str, list[Finding]]:
    """Kind -> its findings, faults only, in the order given."""
    groups: dict[str, list[Finding]] = {}
    for item in findings:
        if item.is_fault:
            groups.setdefault(item.kind, []).append(item)
    return groups


def order(findings: list[Finding], group_repair: dict[str, float]) -> list[Finding]:
    """Worst first: by what repairing the kind brings, then its urgency, then the error and share of each finding.

    Saturations follow the share of their 16-bit sums that overflow.
    """

    def badness(item: Finding) -> tuple[float, ...]:
        error = next((item.evidence[name] for name in _HOW_BAD if name in item.evidence), 1.0)
        error = min(1.0, error) if isinstance(error, float) and error == error else 1.0
        # Shares of repair are measured on samples: differences of a few percent do not order findings.
        repaired = round(max(0.0, group_repair.get(item.kind, 0.0)), 1)
        alone = max(0.0, item.repair or 0.0)
        kind = KINDS[item.kind]
        # How much a layer overflows does not depend on how many weights it has. The share of wrong outputs would not
        # do: it nears 1 at several layers at once, and is counted in steps of each layer's own output scale.
        size = item.evidence["saturated_sums"] if item.kind == "saturation" else error * item.share
        return (not kind.benign, repaired, kind.urgency, round(alone, 2), size)

    return sorted(findings, key=badness, reverse=True)


def verdict(
    findings: list[Finding], group_repair: dict[str, float], lost: dict[str, float], outcome: Outcome | None
) -> str:
    """One sentence about findings in order; ``group_repair`` and ``lost`` are an attribution's."""
    groups = group_by_kind(findings)
    if not groups:
        return _agreement(findings, outcome)
    what = "accuracy" if outcome is not None and outcome.accuracy_a is not None else "top-1 agreement"
    parts = []
    for kind, items in list(groups.items())[:MOST_GROUPS]:
        shares = []
        share = sum(item.share for item in items)
        if share:
            shares.append(f"{percent(share)} of the weights")
        if lost.get(kind, 0.0) > 0:
            shares.append(f"{percent(lost[kind])} of the {what} lost")
        elif group_repair.get(kind, 0.0) > 0 and not lost:
            shares.append(f"{percent(group_repair[kind])} of the error")
        names = join_names(sorted((item.module for item in items), key=_place))
        parts.append(f"{names}: {KINDS[kind].phrase}" + (f" ({', '.join(shares)})" if shares else ""))
    more = len(groups) - MOST_GROUPS
    return "; ".join(parts) + (f"; and {more} more kinds of finding" if more > 0 else "")


def _place(path: str) -> list[tuple[int, str]]:
    """Order paths as a reader counts: features.2 before features.10."""
    return [(int(part) if part.isdigit() else 0, part) for part in path.split(".")]


def _agreement(findings: list[Finding], outcome: Outcome | None) -> str:
    right = [item for item in findings if item.kind == "rounding"]
    exact = all(item.evidence.get("equal_share") == 1.0 for item in right)
    text = f"The models agree: {len(right)} layers hold the right weights"
    text += ", bit for bit" if exact else ", up to rounding"
    clipped = [item.module for item in findings if item.kind == "clipping"]
    if clipped:
        text += f"; int8 clips values at {join_names(clipped)}"
    if outcome is not None and outcome.top1_agreement is not None:
        text += f"; top-1 agreement {percent(outcome.top1_agreement)}"
    return text
