"""An explanation as one HTML file that loads nothing: sortable tables, the plots inline."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from qdeq.diagnosis.results import ExplanationData
from qdeq.diagnosis.say.plot import svg_of
from qdeq.diagnosis.say.wording import noise_text, percent
from qdeq.errors import QdeqError

__all__ = ["explanation_html"]

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
.fault { border-left: 5px solid #D55E00; padding-left: .8rem; }
.agree { border-left: 5px solid #009E73; padding-left: .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .82rem; }
td:not(.n) { overflow-wrap: break-word; }
th, td { text-align: left; padding: .3rem .35rem; border-bottom: 1px solid #ddd; vertical-align: top; }
th { cursor: pointer; background: #f3f3f3; user-select: none; }
th.n, td.n { text-align: right; } td.n { white-space: nowrap; }
code { font-size: .82rem; overflow-wrap: anywhere; } svg { max-width: 100%; height: auto; }
"""

# Sorts by the number in data-v where there is one, otherwise by the text; a second click turns the order.
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, up = head.dataset.up !== "1";
  head.dataset.up = up ? "1" : "0";
  const key = row => { const c = row.cells[at]; return "v" in c.dataset ? Number(c.dataset.v) : c.textContent; };
  const rows = [...body.rows].sort((a, b) => { const x = key(a), y = key(b); return x < y ? -1 : x > y ? 1 : 0; });
  for (const row of up ? rows : rows.reverse()) body.append(row);
});
"""


def explanation_html(explanation: ExplanationData) -> str:
    """Return the whole page."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>qdeq explain</title>',
        f"<style>{_STYLE}</style></head><body>",
        f'<h1 class="{"agree" if explanation.agrees else "fault"}" id="verdict">{escape(explanation.verdict)}</h1>',
        _outcome(explanation),
        "<h2>Findings</h2>",
        _findings(explanation),
        _cumulative(explanation),
        _layers(explanation),
        _sensitivity(explanation),
        "<h2>Plots</h2>",
        _plots(explanation),
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A column of numbers has its name on the right, too.
    classes = [' class="n"' if rows and cell.startswith('<td class="n"') else "" for cell in (rows or [header])[0]]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(header, classes, strict=True))
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    # A table that a narrow window cannot hold scrolls by itself; the page does not.
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _text(value: str) -> str:
    return f"<td>{escape(value)}</td>"


def _number(value: float | None, shown: str) -> str:
    return (
        '<td class="n" data-v="-1e300">-</td>' if value is None else f'<td class="n" data-v="{value:.9g}">{shown}</td>'
    )


def _share(value: float | None) -> str:
    return _number(value, "" if value is None else percent(value))


def _plain(value: float | None) -> str:
    return _number(value, "" if value is None else f"{value:.3g}")


def _outcome(explanation: ExplanationData) -> str:
    outcome = explanation.outcome
    if outcome is None:
        return ""
    header = ("samples", "mean difference", "largest", "SQNR dB", "cosine", "top-1 agreement", "accuracy int8", "float")
    cells = [
        _plain(value) for value in (outcome.samples, outcome.mean_abs, outcome.max_abs, outcome.sqnr_db, outcome.cosine)
    ]
    cells += [_share(value) for value in (outcome.top1_agreement, outcome.accuracy_a, outcome.accuracy_b)]
    return "<h2>Output</h2>" + _table(header, [cells])


def _findings(explanation: ExplanationData) -> str:
    header = ("module", "kind", "what is wrong", "share of weights", "repair: error gone", "remedy")
    rows = [
        [
            _text(item.module),
            _text(item.kind),
            _text(item.message),
            _share(item.share),
            _share(item.repair),
            f"<td><code>{escape(item.remedy)}</code></td>",
        ]
        for item in explanation.findings
    ]
    return _table(header, rows)


def _cumulative(explanation: ExplanationData) -> str:
    if not explanation.cumulative:
        return ""
    rows = [[_plain(place), _text(name), _share(gone)] for place, (name, gone) in enumerate(explanation.cumulative, 1)]
    return "<h2>Put right one after the other</h2>" + _table(("step", "finding", "error gone"), rows)


def _layers(explanation: ExplanationData) -> str:
    if not explanation.layers:
        return ""
    header = (
        "layer",
        "int8 class",
        "float class",
        "weights",
        "equal",
        "largest step",
        "SQNR dB",
        "cosine",
        "mean difference",
        "largest",
        "own error",
        "error from before",
        "clipped",
    )
    rows = [
        [
            _text(row.module),
            _text(row.class_a.rpartition(".")[2]),
            _text(row.class_b.rpartition(".")[2]),
            _number(row.weights, f"{row.weights:,}"),
            _share(row.weight_equal),
            *map(_plain, (row.weight_error_steps, row.sqnr_db, row.cosine, row.mean_abs, row.max_abs)),
            *map(_share, (row.introduced, row.inherited, row.clipped)),
        ]
        for row in explanation.layers
    ]
    parted = explanation.first_divergence
    note = f"<p>The outputs part at <code>{escape(parted)}</code>.</p>" if parted else ""
    return "<h2>Layers</h2>" + _table(header, rows) + note


def _sensitivity(explanation: ExplanationData) -> str:
    if not explanation.sensitivity:
        return ""
    parts = ("weights", "activations", "together")
    header = ["module"]
    for part in parts:
        header += [f"{part}: SQNR dB", "top-1 agreement", "accuracy"]
    rows = []
    for row in explanation.sensitivity:
        cells = [_text(row.module)]
        for cost in (row.weights, row.activations, row.together):
            # Sorted by the noise: nothing lost and all lost have no number of dB.
            cells.append(_number(None if cost is None else -cost.noise, noise_text(cost)))
            cells.append(_share(None if cost is None else cost.top1_agreement))
            cells.append(_share(None if cost is None else cost.accuracy))
        rows.append(cells)
    used = [i for i in range(len(header)) if i == 0 or any("-1e300" not in row[i] for row in rows)]
    shown = _table([header[i] for i in used], [[row[i] for i in used] for row in rows])
    note = "<p>Each module quantized alone in the float model, the most expensive first.</p>"
    return "<h2>Sensitivity</h2>" + note + shown


def _plots(explanation: ExplanationData) -> str:
    try:
        return svg_of(explanation)
    except QdeqError as error:
        return f"<p>No plots: {escape(str(error))}</p>"
