"""Weights that one scale for all channels has left with a few levels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qdeq.diagnosis.findings.weights import finding
from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.results import Finding
from qdeq.diagnosis.sides.pairs import Pair

__all__ = ["collapsed_findings"]

# A channel has collapsed where its weights use at most this many of the 255 levels to both sides of zero (4 bits)
MOST_LEVELS = 15
# and rounding took this share of their power: 20 dB.
LEAST_NOISE = 0.01
# It is one scale for uneven channels where so many channels have collapsed while another one uses so many levels.
LEAST_CHANNELS = 0.25
LEAST_WIDEST = 128
# Channels of which so many numbers are shown, from the smallest one to the largest.
SHOWN = 8


def collapsed_findings(pairs: list[Pair], right: set[str]) -> list[Finding]:
    """Name the layers, among those in ``right``, of which a part of the channels has collapsed."""
    found = []
    for pair in pairs:
        ints = pair.layer.ints
        if pair.layer.path not in right or ints.per_channel or not pair.same_shape:
            continue
        weight = pair.folded[0] if pair.folded is not None and pair.use_folded else pair.partner.weight
        rows = ints.as_rows(weight).float()
        levels = _levels(ints.values, int(ints.zero_point[0]))
        power = rows.square().sum(1)
        noise = (ints.rows(slice(None)) - rows).square().sum(1) / power.clamp_min(1e-30)
        live = power > 0
        collapsed = live & (levels <= MOST_LEVELS) & (noise >= LEAST_NOISE)
        share = float(collapsed.sum() / live.sum().clamp_min(1))
        if share < LEAST_CHANNELS or int(levels.max()) < LEAST_WIDEST:
            continue
        found.append(_finding(pair, levels[live], collapsed, share))
    return found


def _levels(values: Tensor, zero_point: int) -> Tensor:
    return 2 * (values.int() - zero_point).abs().amax(1) + 1


def _finding(pair: Pair, levels: Tensor, collapsed: Tensor, share: float) -> Finding:
    middle, widest = int(levels.median()), int(levels.max())
    places = torch.linspace(0, len(levels) - 1, min(SHOWN, len(levels))).round().long()
    evidence = {
        "channels": len(levels),
        "collapsed_channels": int(collapsed.sum()),
        "collapsed_share": share,
        "levels_of_channels": levels.sort().values[places].tolist(),
        "median_bits": math.log2(middle),
    }
    text = f"one scale for all channels leaves {int(collapsed.sum())} of {len(levels)} channels with at most"
    text += (
        f" {MOST_LEVELS} levels (median {middle}, the widest channel {widest}); a scale per channel would keep 8 bits"
    )
    found = finding(pair, "levels_collapsed", f"{text} in each", evidence)
    found.remedy = KINDS["levels_collapsed"].remedy.format(module=pair.layer.module)
    return found
