"""One pass over a layer's float weight against its integers: which channels are right, and how far off the rest is.

A layer holds these float weights if ``q = clamp(round(w / scale) + zero_point)``, which is what torch's ``convert``
computes: every weight lies within half a step of its integer, or beyond it where the integer is the last one that the
recipe allows. How many are clipped like that says nothing: training moves weights past the range that was observed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdeq.diagnosis.sides.integers import FloatLayer, IntegerLayer, Integers

__all__ = ["Case", "Scan", "open_case", "scan_weight"]

# Numbers of weights worked on at once: their float32 values stay in the second-level cache.
CHUNK_WEIGHTS = 1 << 18
# float32 operations between a weight and its integer: folding a batch norm, 1 / scale, the product, the zero point.
# Each may be half a unit in the last place off; which of them were done is not known.
FLOAT_ERRORS = 8
# A channel is explained by clipping for the most part when this share of it is clipped; then a formula that explains
# every weight exactly is the better explanation.
MUCH_CLIPPED = 0.25
SAMPLE_ROWS = 64
SAMPLE_COLUMNS = 4096


@dataclass(eq=False)
class Scan:
    """What one pass finds."""

    right: Tensor  # bool (channels,): the channel's integers are what the rule makes of its float weights
    much_clipped: Tensor  # bool (channels,): a good part of it is right because it is clipped
    total: int  # number of weights
    equal: int = 0  # weights that are equal bit for bit
    on_grid: int = 0  # weights that are equal but for float errors
    clipped: int = 0  # weights beyond half a step whose integer is the last one, on the side of the excess
    beyond: int = 0  # weights more than half a step off, the clipped ones not counted
    max_steps: float = 0.0  # largest difference in steps (units of the channel's scale), the clipped ones not counted
    max_excess: float = 0.0  # largest difference of a clipped weight, in steps
    correlation: float = 0.0  # Pearson correlation with the dequantized weight; 0 where either is constant
    relative_error: float = 0.0  # root mean square of the difference, relative to the dequantized weight's
    finite: bool = True  # whether every float weight and every dequantized one is finite

    @property
    def is_right(self) -> bool:
        """Whether every channel is right."""
        return self.finite and bool(self.right.all())


def scan_weight(ints: Integers, rows: Tensor, limits: tuple[int, int] | None = None, most: int | None = None) -> Scan:
    """Compare float weights (channels, weights per channel) with the integers, a block of channels at a time.

    Args:
        ints: the integers.
        rows: the float weights.
        limits: smallest and largest integer of the recipe, where it is known. Otherwise, and where the integers go
            beyond them, the last ones are those in use.
        most: look at so many weights, in whole channels.

    """
    channels, per_channel = ints.values.shape
    block = max(1, CHUNK_WEIGHTS // max(1, per_channel))
    if most is not None:
        channels = min(channels, max(1, most // max(1, per_channel)))
    scan = Scan(torch.ones(channels, dtype=torch.bool), torch.zeros(channels, dtype=torch.bool), channels * per_channel)
    moments = torch.zeros(6, dtype=torch.float64)  # sums of r, w, r r, w w, r w, (w - r)^2
    for start in range(0, channels, block):
        part = slice(start, min(start + block, channels))
        reference, weight = ints.rows(part), rows[part].to(torch.float32)
        moments += _moments(reference, weight)
        if torch.equal(reference, weight):
            scan.equal += reference.numel()
            scan.on_grid += reference.numel()
            continue
        scan.finite &= bool(torch.isfinite(weight).all()) and bool(torch.isfinite(reference).all())
        scan.equal += int((reference == weight).sum())
        steps, error = _steps(ints, part, weight, weight - reference, rows.dtype)
        _count(scan, part, steps, error, _at_end(ints, part, weight - reference, limits))
    scan.correlation, scan.relative_error = _summary(moments, scan.total)
    return scan


def _count(scan: Scan, part: slice, steps: Tensor, error: Tensor, at_end: Tensor) -> None:
    """Count some channels in: differences in steps, how much of them is float error, and what may be clipped."""
    scan.on_grid += int((steps <= error).sum())
    far = ~(steps <= 0.5 + error)
    excess = far & at_end
    far &= ~excess
    scan.clipped += int(excess.sum())
    scan.beyond += int(far.sum())
    scan.right[part] = ~far.any(dim=1)
    scan.much_clipped[part] = excess.sum(dim=1) > MUCH_CLIPPED * steps.shape[1]
    steps = steps.nan_to_num(nan=float("inf"))
    scan.max_steps = max(scan.max_steps, float(steps.masked_fill(excess, 0.0).max()))
    scan.max_excess = max(scan.max_excess, float(steps.masked_fill(~excess, 0.0).max()))


def _steps(
    ints: Integers, part: slice, weight: Tensor, difference: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Differences in steps, and how much of each is float error, by the dtype that the weights have."""
    step = ints.scale[part].abs().to(torch.float32).clamp_min(1e-45).unsqueeze(1)
    size = weight.abs() / step + (ints.zero_point[part].abs().to(torch.float32).unsqueeze(1) + 1)
    unit = max(FLOAT_ERRORS * torch.finfo(torch.float32).eps, torch.finfo(dtype).eps) / 2
    return difference.abs() / step, unit * size


def _at_end(ints: Integers, part: slice, difference: Tensor, limits: tuple[int, int] | None) -> Tensor:
    low, high = ints.in_use
    if limits is not None and limits[0] <= low and high <= limits[1]:
        low, high = limits
    values = ints.values[part]
    return ((values == low) & (difference < 0)) | ((values == high) & (difference > 0))


def _moments(reference: Tensor, weight: Tensor) -> Tensor:
    r, w = reference.flatten(), weight.flatten()
    error = w - r
    sums = (r.sum(), w.sum(), torch.dot(r, r), torch.dot(w, w), torch.dot(r, w), torch.dot(error, error))
    return torch.stack(sums).double()


def _summary(moments: Tensor, total: int) -> tuple[float, float]:
    if total == 0:
        return 0.0, 0.0
    r, w, rr, ww, rw, ee = (float(value) for value in moments)
    spread = (rr - r * r / total) * (ww - w * w / total)
    correlation = (rw - r * w / total) / spread**0.5 if spread > 0 else 0.0
    return max(-1.0, min(1.0, correlation)), (ee / rr) ** 0.5 if rr > 0 else float(ee > 0)


@dataclass(frozen=True, eq=False)
class Case:
    """A layer whose float weight is suspected, as the recognisers see it."""

    layer: IntegerLayer  # the int8 side
    partner: FloatLayer  # the float side
    ints: Integers  # the integers
    rows: Tensor  # all float weights, (channels, weights per channel)
    scan: Scan  # the result of the pass over all of them
    channels: Tensor  # int64 (n,): a sample of the suspected channels
    columns: Tensor  # int64 (m,): a sample of the weights of each channel
    q: Tensor  # float64 (n, m): the integers of the sample, zero point not subtracted
    w: Tensor  # float64 (n, m): the float weights of the sample

    @property
    def s(self) -> Tensor:
        """Scales of the sample's channels, float64 (n, 1)."""
        return self.ints.scale[self.channels].unsqueeze(1)

    @property
    def z(self) -> Tensor:
        """Zero points of the sample's channels, float64 (n, 1)."""
        return self.ints.zero_point[self.channels].unsqueeze(1)

    @property
    def tolerance(self) -> float:
        """Largest relative difference that the float weight's dtype explains."""
        return max(2e-5, 4 * torch.finfo(self.partner.weight.dtype).eps)

    def matches(self, candidate: Tensor) -> bool:
        """Whether the sample's weights are ``candidate`` (broadcast to (n, m)), up to rounding."""
        size = candidate.abs().amax(dim=-1, keepdim=True)
        return bool(((self.w - candidate).abs() <= self.tolerance * size + 1e-30).all())


def open_case(layer: IntegerLayer, partner: FloatLayer, rows: Tensor, scan: Scan, suspects: Tensor) -> Case:
    """Draw the sample, the same one every time, from the channels that ``suspects``, bool (channels,), names."""
    ints = layer.ints
    generator = torch.Generator().manual_seed(0)
    wrong = suspects.nonzero().flatten()
    channels = wrong[torch.randperm(len(wrong), generator=generator)[:SAMPLE_ROWS]].sort().values
    columns = torch.randperm(rows.shape[1], generator=generator)[:SAMPLE_COLUMNS].sort().values
    q = ints.values[channels][:, columns].double()
    w = rows[channels][:, columns].double()
    return Case(layer, partner, ints, rows, scan, channels, columns, q, w)
