"""Results as text for an 80-column terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.results import ExplanationData, Finding, Layer, Outcome, Sensitivity
from qdeq.diagnosis.say.wording import join_names, noise_text, percent
from qdeq.words import clip

__all__ = ["comparison_text", "explanation_text"]

COLUMNS = 80
MOST_SHOWN = 6
MOST_STEPS = 12
SHARES = {"accuracy": "accuracy", "top1_agreement": "top-1"}


def explanation_text(explanation: ExplanationData) -> str:
    """Return the whole explanation."""
    return "\n".join(line.rstrip() for line in _explanation_lines(explanation))


def _explanation_lines(explanation: ExplanationData) -> Iterator[str]:
    yield from textwrap.wrap(explanation.verdict, COLUMNS)
    faults = [item for item in explanation.findings if item.is_fault]
    for number, item in enumerate(faults[:MOST_SHOWN], 1):
        yield ""
        yield from _finding_lines(number, item)
    if len(faults) > MOST_SHOWN:
        yield ""
        yield f"... and {len(faults) - MOST_SHOWN} more findings, in .findings"
    for kind in ("clipping", "rounding"):
        names = [item.module for item in explanation.findings if item.kind == kind]
        if names:
            yield ""
            yield from textwrap.wrap(f"{KINDS[kind].phrase}: {join_names(names, 6)}", COLUMNS, subsequent_indent="   ")
    if explanation.cumulative:
        yield ""
        yield "Put right one after the other, the share of the error that is gone:"
        for name, gone in explanation.cumulative[:MOST_STEPS]:
            yield f"  {clip(name, 64):<64}  {percent(gone):>8}"
    if explanation.outcome is not None:
        yield ""
        yield from _outcome_lines(explanation.outcome)
    if explanation.layers:
        yield ""
        yield from _layer_table(explanation.layers)
    if explanation.first_divergence is not None:
        yield f"The outputs part at {explanation.first_divergence}."
    if explanation.sensitivity:
        yield ""
        yield from _sensitivity_table(explanation.sensitivity)


def _finding_lines(number: int, item: Finding) -> Iterator[str]:
    parts = [item.kind] + ([f"{percent(item.share)} of the weights"] if item.share else [])
    if item.repair is not None:
        parts.append(f"alone {percent(item.repair)} of the error")
    yield from textwrap.wrap(f"{number}. {item.message}", COLUMNS, subsequent_indent="   ")
    yield f"   {', '.join(parts)}"
    remedy = item.remedy.replace("(int8_model", "( int8_model")  # a place to break the line at that Python takes, too
    yield from textwrap.wrap(remedy, COLUMNS, initial_indent="   > ", subsequent_indent="     ")


def _outcome_lines(outcome: Outcome) -> Iterator[str]:
    parts = [f"{outcome.samples} samples", f"mean difference {outcome.mean_abs:.3g}", f"largest {outcome.max_abs:.3g}"]
    if outcome.sqnr_db is not None:
        parts.append(f"SQNR {outcome.sqnr_db:.1f} dB")
    if outcome.top1_agreement is not None:
        parts.append(f"top-1 agreement {percent(outcome.top1_agreement)}")
    if outcome.accuracy_a is not None and outcome.accuracy_b is not None:
        parts.append(f"accuracy {percent(outcome.accuracy_a)} and {percent(outcome.accuracy_b)}")
    yield from textwrap.wrap("Output: " + ", ".join(parts), COLUMNS, subsequent_indent="        ")


def _layer_table(layers: list[Layer]) -> Iterator[str]:
    header = f"{'layer':<28}{'weights':>10}{'equal':>8}{'SQNR dB':>9}{'own':>8}{'before':>8}{'clipped':>9}"
    yield header
    for row in layers:
        cells = (
            f"{row.weights:>10}" if row.weights else " " * 10,
            f"{_cell(row.weight_equal, percent):>8}",
            f"{_cell(row.sqnr_db, lambda value: f'{value:.1f}'):>9}",
            f"{_cell(row.introduced, percent):>8}",
            f"{_cell(row.inherited, percent):>8}",
            f"{_cell(row.clipped, percent):>9}",
        )
        yield f"{clip(row.module or '(model)', 27):<28}" + "".join(cells)
    if any(row.introduced is not None for row in layers):
        yield "own, before: error made here and error that arrived, relative to the output"


def _sensitivity_table(rows: list[Sensitivity]) -> Iterator[str]:
    """The parts that were measured, each with its SQNR and what is left of the accuracy or the top-1 agreement."""
    parts = [part for part in ("weights", "activations", "together") if any(getattr(row, part) for row in rows)]
    costs = [cost for row in rows for part in parts if (cost := getattr(row, part))]
    right = "accuracy" if any(cost.accuracy is not None for cost in costs) else "top1_agreement"
    yield "What quantizing one module alone costs the float model, most expensive first:"
    yield f"{'module':<28}" + "".join(f"{part + ' dB':>15}{SHARES[right]:>10}" for part in parts)
    for row in rows:
        line = f"{clip(row.module or '(model)', 27):<28}"
        for part in parts:
            cost = getattr(row, part)
            line += f"{noise_text(cost):>15}{_cell(cost and getattr(cost, right), percent):>10}"
        yield line


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def comparison_text(layers: list[Layer], outcome: Outcome, unmatched: list[str]) -> str:
    """Return the table of a comparison."""
    lines = [*_outcome_lines(outcome), "", *_layer_table(layers)]
    if unmatched:
        lines += ["", *textwrap.wrap(f"Only in one model: {join_names(unmatched, 8)}", COLUMNS)]
    return "\n".join(line.rstrip() for line in lines)
