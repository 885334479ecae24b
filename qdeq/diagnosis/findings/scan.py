"""One pass over a layer's float weight against its integers: which channels are right, and how far off the rest is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qdeq.diagnosis.sides.integers import FloatLayer, IntegerLayer, Integers

__all__ = ["Case", "Scan", "open_case", "scan_weight"]

# Numbers of weights worked on at once: their float32 values stay in the second-level cache.
CHUNK_WEIGHTS = 1 << 18
# Share of a channel's weights that may be clipped before the channel counts as wrong.
MOST_AT_END = 0.25
SAMPLE_ROWS = 64
SAMPLE_COLUMNS = 4096


@dataclass(frozen=True, eq=False)
class Scan:
    """What one pass finds."""

    right: Tensor  # bool (channels,): every weight within half a step, or clipped at the end of the range
    equal: int  # weights that are equal bit for bit
    clipped: int  # weights beyond half a step whose integer is at the end of the range, on the side of the excess
    beyond: int  # weights more than half a step off, the clipped ones not counted
    total: int  # number of weights
    max_steps: float  # largest difference in steps (units of the channel's scale)
    correlation: float  # Pearson correlation with the dequantized weight; 0 where either is constant
    relative_error: float  # root mean square of the difference, relative to the dequantized weight's
    finite: bool  # whether every float weight and every dequantized one is finite

    @property
    def is_right(self) -> bool:
        """Whether every channel is right."""
        return bool(self.right.all())


def scan_weight(ints: Integers, rows: Tensor) -> Scan:
    """Compare float weights (channels, weights per channel) with the integers, a block of channels at a time."""
    channels, per_channel = ints.values.shape
    block = max(1, CHUNK_WEIGHTS // max(1, per_channel))
    right = torch.ones(channels, dtype=torch.bool)
    equal = clipped = beyond = 0
    max_steps = 0.0
    moments = torch.zeros(6, dtype=torch.float64)  # sums of r, w, r r, w w, r w, (w - r)^2
    finite = True
    for start in range(0, channels, block):
        part = slice(start, min(start + block, channels))
        reference, weight = ints.rows(part), rows[part].to(torch.float32)
        if torch.equal(reference, weight):
            equal += reference.numel()
            moments += _moments(reference, weight)
            continue
        finite = finite and bool(torch.isfinite(weight).all()) and bool(torch.isfinite(reference).all())
        equal += int((reference == weight).sum())
        difference = weight - reference
        step = ints.scale[part].abs().to(torch.float32).clamp_min(1e-45).unsqueeze(1)
        steps = difference.abs() / step
        far = ~(steps <= 0.5001)
        at_end = _at_end(ints, part, difference)
        clipped += int((far & at_end).sum())
        far &= ~at_end
        beyond += int(far.sum())
        right[part] = ~far.any(dim=1)
        max_steps = max(max_steps, float(steps.nan_to_num(nan=float("inf")).max()))
        moments += _moments(reference, weight)
    total = ints.values.numel()
    correlation, relative = _summary(moments, total)
    return Scan(right, equal, clipped, beyond, total, max_steps, correlation, relative, finite)


def _at_end(ints: Integers, part: slice, difference: Tensor) -> Tensor:
    # Training moves a weight past the range that an observer saw before; a whole channel it does not move there.
    low, high = ints.full_range
    values = ints.values[part]
    at_end = ((values == low) & (difference < 0)) | ((values == high) & (difference > 0))
    return at_end & (at_end.sum(dim=1, keepdim=True) <= MOST_AT_END * values.shape[1])


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
    """A layer whose float weight is wrong, as the recognisers see it."""

    layer: IntegerLayer  # the int8 side
    partner: FloatLayer  # the float side
    ints: Integers  # the integers
    rows: Tensor  # all float weights, (channels, weights per channel)
    scan: Scan  # the result of the pass over all of them
    channels: Tensor  # int64 (n,): a sample of the wrong channels
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


def open_case(layer: IntegerLayer, partner: FloatLayer, rows: Tensor, scan: Scan) -> Case:
    """Draw the sample, the same one every time."""
    ints = layer.ints
    generator = torch.Generator().manual_seed(0)
    wrong = (~scan.right).nonzero().flatten()
    channels = wrong[torch.randperm(len(wrong), generator=generator)[:SAMPLE_ROWS]].sort().values
    columns = torch.randperm(rows.shape[1], generator=generator)[:SAMPLE_COLUMNS].sort().values
    q = ints.values[channels][:, columns].double()
    w = rows[channels][:, columns].double()
    return Case(layer, partner, ints, rows, scan, channels, columns, q, w)
