"""Pictures of an explanation, with matplotlib (``pip install qdeq[plot]``)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from qdeq.diagnosis.results import ExplanationData, Layer, Sensitivity
from qdeq.errors import QdeqError, QdeqValueError, expected

__all__ = ["picture", "svg_of"]

# Okabe and Ito's colours, told apart with every common colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
MOST_LAYERS = 40
# Right weights are shown this many steps around their median, so that the integer grid can be seen; others whole.
GRID_STEPS = 24
WHOLE_STEPS = 288
TITLE_CHARACTERS = 44
# Values further outside than this are drawn up to here.
SHOWN_PERCENT = 150
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "qdeq"}


def picture(explanation: ExplanationData, suffix: str) -> bytes:
    """Return the plots as one picture file.

    Error per layer, the weights of the worst layer against the integer grid, and, where the models were run, the
    range of every layer's output against what int8 represents. The suffix gives the format: .png, .svg, .pdf.

    Raises:
        QdeqError: matplotlib is not installed.
        QdeqValueError: the suffix is no picture format.

    """
    buffer = io.BytesIO()
    try:
        _figure(explanation).savefig(buffer, format=suffix.removeprefix(".") or "no suffix", dpi=120)
    except ValueError as error:
        remedy = "Name a .png, .svg or .pdf file."
        raise QdeqValueError(expected("plot", "a suffix of a picture", suffix or "none", remedy)) from error
    return buffer.getvalue()


def svg_of(explanation: ExplanationData) -> str:
    """Return the same picture as an ``<svg>`` element, to stand inside HTML."""
    buffer = io.StringIO()
    _figure(explanation).savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _figure(explanation: ExplanationData) -> Any:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        message = expected("plot", "matplotlib", "no such package", "Install it: pip install 'qdeq[plot]'.")
        raise QdeqError(message) from error
    layers = explanation.layers[:MOST_LAYERS]
    ranges = [row for row in layers if row.low_representable is not None and row.low is not None]
    panels = [_draw_error] if layers else []
    panels += [_draw_weights] if explanation.histograms else []
    panels += [_draw_ranges] if ranges else []
    costs = explanation.sensitivity[:MOST_LAYERS]
    panels += [_draw_sensitivity] if costs else []
    with mpl.rc_context(_STYLE):
        height = max(2.6, 0.22 * len(layers) + 1.2)
        tall = height * (2 if ranges else 1) + (max(2.6, 0.22 * len(costs) + 1.2) if costs else 0)
        figure = Figure(figsize=(9, tall + 3.2), layout="constrained")
        axes = figure.subplots(max(1, len(panels)), 1, squeeze=False)[:, 0]
        for draw, axis in zip(panels, axes, strict=False):
            draw(axis, explanation)
    return figure


def _names(axis: Any, layers: Sequence[Layer | Sensitivity]) -> None:
    axis.set_yticks(range(len(layers)), [row.module or "(model)" for row in layers])
    axis.invert_yaxis()


def _legend(axis: Any) -> None:
    """Put the legend above the axes, right, where no bar can be."""
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncol=2, borderaxespad=0)


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers."""
    axis.xaxis.set_major_formatter(lambda value, position: f"{value:g}")


def _label_percent(axis: Any, label: str, title: str) -> None:
    axis.set_xlabel(label)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_title(title, loc="left")
    _legend(axis)
    _plain_ticks(axis)


def _draw_error(axis: Any, explanation: ExplanationData) -> None:
    layers = explanation.layers[:MOST_LAYERS]
    measured = [row for row in layers if row.introduced is not None]
    if measured:
        places = range(len(measured))
        own = [100 * (row.introduced or 0.0) for row in measured]
        before = [100 * (row.inherited or 0.0) for row in measured]
        axis.barh([place - 0.2 for place in places], own, 0.4, color=BLUE, label="made in this layer")
        axis.barh([place + 0.2 for place in places], before, 0.4, color=ORANGE, label="arrived from before")
        _label_percent(
            axis, "error of the output, root mean square, % of the int8 output's", "Where the outputs differ"
        )
        _names(axis, measured)
        return
    steps = [min(row.weight_error_steps or 0.0, 1e6) for row in layers]
    axis.barh(range(len(layers)), steps, 0.6, color=BLUE)
    axis.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="half a step: rounding")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlabel("largest difference of a weight, steps of its channel's scale")
    axis.set_title("Where the weights differ", loc="left")
    _plain_ticks(axis)
    _legend(axis)
    _names(axis, layers)


def _draw_weights(axis: Any, explanation: ExplanationData) -> None:
    wrong = (item.module for item in explanation.findings if item.is_fault and "relative_error" in item.evidence)
    fault = next((module for module in wrong if module in explanation.histograms), None)
    module = next(iter(explanation.histograms)) if fault is None else fault
    data = explanation.histograms[module]
    weights = [value for value in data["weights"] if value == value and abs(value) < 1e6]
    centred = sorted(data["integers"])
    middle = round(centred[len(centred) // 2]) if centred else 0
    span, bin_steps = (GRID_STEPS, 0.25) if fault is None else (WHOLE_STEPS, 4.0)
    low, high = middle - span // 2, middle + span // 2
    if fault is None:
        for step in range(low, high + 1):
            axis.axvline(step, color=GREY, linewidth=0.5, zorder=0)
    wide = max(1.0, bin_steps)
    edges = [low - wide / 2 + index * wide for index in range(int(span / wide) + 2)]
    fine = [low - bin_steps / 2 + index * bin_steps for index in range(int(span / bin_steps) + 2)]
    axis.hist(centred, edges, color=ORANGE, alpha=0.45, label="int8: integer - zero point")
    axis.hist(weights, fine, color=BLUE, alpha=0.8, label="float: weight / scale")
    outside = sum(not low <= value <= high for value in weights) / max(1, len(weights))
    axis.set_xlim(low - wide / 2, high + wide / 2)
    around, grid = (", around the median", "; grey lines: the integer grid") if fault is None else ("", "")
    far = f"{100 * outside:.0f} % of the float weights lie outside"
    axis.set_xlabel(f"steps of the channel's scale{around}; {far}{grid}")
    axis.set_ylabel(f"of {len(weights)} sampled weights")
    # The legend stands right of the title: of a longer path its end is shown, which tells layers apart.
    name = module if len(module) <= TITLE_CHARACTERS else f"...{module[3 - TITLE_CHARACTERS :]}"
    axis.set_title(f"Weights of {name or 'the model'}", loc="left")
    _legend(axis)


def _draw_ranges(axis: Any, explanation: ExplanationData) -> None:
    layers = [
        row
        for row in explanation.layers[:MOST_LAYERS]
        if row.low is not None and row.high is not None and row.low_representable is not None
    ]
    for place, row in enumerate(layers):
        low, high = row.low_representable or 0.0, row.high_representable or 0.0
        span = (high - low) or 1.0
        axis.barh(place, 100, 0.7, color=GREEN, alpha=0.35, label=None if place else "what int8 represents")
        start, end = 100 * ((row.low or 0.0) - low) / span, 100 * ((row.high or 0.0) - low) / span
        start, end = max(start, -SHOWN_PERCENT), min(end, 100 + SHOWN_PERCENT)
        axis.plot([start, end], [place, place], color=BLUE, linewidth=3, label=None if place else "float values")
    axis.set_xlabel("% of the representable range")
    axis.set_title("Range of the outputs", loc="left")
    _legend(axis)
    _names(axis, layers)


def _draw_sensitivity(axis: Any, explanation: ExplanationData) -> None:
    rows = explanation.sensitivity[:MOST_LAYERS]
    parts = (("weights", BLUE, -0.2), ("activations", ORANGE, 0.2), ("together", GREEN, 0.0))
    for part, color, shift in parts:
        costs = [getattr(row, part) for row in rows]
        if any(costs):
            # The root of the power, as in the other panel; beyond the output itself all is lost.
            sizes = [100 * min(cost.noise, 1.0) ** 0.5 if cost else 0.0 for cost in costs]
            axis.barh([place + shift for place in range(len(rows))], sizes, 0.4, color=color, label=part)
    label, title = "change of the output, root mean square, % of the output's", "What quantizing one module alone costs"
    _label_percent(axis, label, title)
    _names(axis, rows)
