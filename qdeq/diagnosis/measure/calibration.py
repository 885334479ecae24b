"""Findings about outputs whose grid does not fit the values: calibrated too wide, too narrow, or on other inputs."""

from __future__ import annotations

import math
import statistics
from typing import Any

from qdeq.diagnosis.findings.uncalibrated import is_default
from qdeq.diagnosis.measure.grid_use import GridUse
from qdeq.diagnosis.measure.watching import Watch
from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.say.wording import percent

__all__ = ["calibration_findings", "fits"]

# A grid does not fit where its errors reach this share of the values' power (20 dB),
LEAST_NOISE = 0.01
# and so many times that of the middle one of all grids, or this share, which no layer can do with (10 dB).
TIMES_MIDDLE, WORST_NOISE = 10.0, 0.1
# It is too wide where the values reach across less than this share of it; rounding alone is a matter of their tails.
MOST_SHARE = 0.25
_GRIDS = ("calibrated_wide", "calibrated_narrow")


def fits(grid: GridUse) -> bool:
    """Whether neither rounding nor clipping costs much."""
    return max(grid.rounding_noise, grid.clipping_noise) < LEAST_NOISE


def calibration_findings(watches: list[Watch]) -> list[Finding]:
    """Name the modules whose grid does not fit and stands out among all grids.

    For outputs that part: in a model that works nothing of this is a fault.
    """
    grids = {watch: watch.grid for watch in watches if watch.grid is not None and watch.grid.signal > 0}
    if not grids:
        return []
    middle = statistics.median(max(grid.rounding_noise, grid.clipping_noise) for grid in grids.values())
    found = []
    for watch, grid in grids.items():
        noise = max(grid.rounding_noise, grid.clipping_noise)
        if noise < LEAST_NOISE or noise < min(WORST_NOISE, TIMES_MIDDLE * middle):
            continue
        is_wide = grid.rounding_noise >= grid.clipping_noise
        if is_wide and grid.share >= MOST_SHARE:
            continue
        found.append(_finding(watch, grid, is_wide))
    return _one_cause(found)


def _one_cause(found: list[Finding]) -> list[Finding]:
    """Where the inputs were others, so was everything behind them: that is one finding."""
    inputs = [item for item in found if item.kind == "input_range"]
    for item in inputs:
        item.evidence["modules"] = [other.module for other in found]
    return [item for item in found if item in inputs or not inputs or item.kind not in _GRIDS]


def _finding(watch: Watch, grid: GridUse, is_wide: bool) -> Finding:
    low, high = grid.limits
    levels, bits = grid.levels, math.log2(max(1, grid.levels))
    evidence: dict[str, Any] = {
        **{"scale": grid.scale, "zero_point": grid.zero_point, "low": grid.low, "high": grid.high},
        **{"low_representable": low, "high_representable": high, "levels": levels, "effective_bits": bits},
        **{"grid_share": grid.share, "at_the_ends": grid.clipped},
        **{"rounding_noise": grid.rounding_noise, "clipping_noise": grid.clipping_noise},
    }
    text = f"its values are {grid.low:.3g} to {grid.high:.3g}, its grid {low:.3g} to {high:.3g}: "
    if is_wide:
        text += f"{levels} of 256 levels are in use ({bits:.1f} bits)"
    else:
        text += f"{percent(grid.clipped)} of the values lie at its ends, clipped"
    if is_default(grid.scale, grid.zero_point):
        return _make(watch, "never_calibrated", f"scale 1, zero point 0, as without calibration; {text}", evidence)
    if watch.is_stub:
        return _make(watch, "input_range", f"{text}; calibration saw inputs of another range", evidence)
    kind = _GRIDS[0 if is_wide else 1]
    return _make(watch, kind, text, evidence)


def _make(watch: Watch, kind: str, text: str, evidence: dict[str, Any]) -> Finding:
    share = 0.0 if watch.pair is None else watch.pair.layer.numel / watch.pair.total
    return make_finding(watch.path, kind, f"{watch.path}: {text}", evidence, share)
