"""What watching both models shows: the table of layers, clipping and saturation."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from qdeq.diagnosis.findings.weights import finding
from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.measure.watching import Watch
from qdeq.diagnosis.results import Finding, Layer

__all__ = ["fill_table", "first_divergence", "runtime_findings"]

# Clipping is worth a line when this share of a layer's values is outside what int8 represents.
CLIPPED_SHARE = 1e-3
# The outputs part where the noise is a tenth of the signal's power: 10 dB.
DIVERGED_NOISE = 0.1
# reduce_range=True leaves 128 levels to values like those of the calibration; a few are always larger.
REDUCED_LEVELS = 160


def _relative(error: float, signal: float) -> float:
    return (error / signal) ** 0.5 if signal > 0 else float(error > 0)


def fill_table(watches: list[Watch], table: dict[str, Layer]) -> None:
    """Write the numbers of the layers into their rows."""
    for watch in watches:
        if watch.pair is None or watch.total.count == 0:
            continue
        row = table[watch.path]
        for name, number in watch.total.numbers().items():
            setattr(row, name, number)
        row.introduced = _relative(watch.own, watch.split_signal)
        row.inherited = _relative(watch.before, watch.split_signal)
        row.clipped = watch.outside / watch.total.count
        row.low, row.high = watch.low, watch.high
        if watch.grid is not None:
            row.low_representable, row.high_representable = watch.grid.limits


def first_divergence(watches: list[Watch]) -> str | None:
    """The first module, in the order of running, where the outputs part; None if none does."""
    return next((watch.path for watch in watches if watch.total.noise > DIVERGED_NOISE), None)


def runtime_findings(watches: list[Watch]) -> list[Finding]:
    """Clipping and saturation."""
    found = []
    grids = [watch.grid.levels for watch in watches if watch.grid is not None]
    # What most outputs keep to, a qconfig chose: recommending it again would be of no use.
    reduced = bool(grids) and statistics.median(grids) <= REDUCED_LEVELS
    for watch in watches:
        if watch.pair is None:
            continue
        clipped, grid = watch.outside / max(1, watch.total.count), watch.grid
        if clipped > CLIPPED_SHARE and grid is not None:
            low, high = grid.limits
            text = f"{100 * clipped:.2g} % of the float values are outside {low:.3g} .. {high:.3g}, which is"
            evidence = {"clipped_share": clipped, "low": watch.low, "high": watch.high}
            found.append(finding(watch.pair, "clipping", f"{text} what int8 represents", evidence))
        if watch.saturation is not None and watch.saturation.matters:
            item = finding(watch.pair, "saturation", watch.saturation.sentence(), asdict(watch.saturation))
            item.remedy = KINDS["calibrated_narrow"].remedy if reduced else item.remedy
            found.append(item)
    return found
