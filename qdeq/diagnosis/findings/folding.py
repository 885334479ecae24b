"""Which batch norm, if any, is folded into an int8 layer: the one under which its integers are right."""

from __future__ import annotations

from torch import Tensor

from qdeq.diagnosis.findings.scan import Scan, scan_weight
from qdeq.diagnosis.sides.integers import Integers
from qdeq.diagnosis.sides.pairs import Norm, Pair, other_norms

__all__ = ["best_scan"]

# Weights on which each batch norm that may be folded in is tried.
QUICK = 1 << 14


def best_scan(pair: Pair, ints: Integers) -> tuple[Tensor, Scan]:
    """Return the weight as it stands, or with a batch norm behind it folded in if that fits better.

    Which one it is, and its eps where a file does not say it, is the one under which the integers are right.
    """
    limits = pair.partner.limits
    rows = ints.as_rows(pair.partner.weight)
    scan = scan_weight(ints, rows, limits)
    if scan.is_right:
        return rows, scan
    likely = [norm for norm in pair.norms if _explains(pair, norm)]
    likely = likely or [norm for norm in other_norms(pair) if _explains(pair, norm)]
    # Weights of few bits leave several eps possible; the bias is not rounded.
    likely.sort(key=lambda norm: _bias_error(pair, norm))
    if pair.norms and not likely:
        likely = [max(pair.norms, key=lambda norm: _quick(pair, norm).correlation)]
    for norm in likely:
        folded = ints.as_rows(pair.fold_with(norm)[0])
        folded_scan = scan_weight(ints, folded, limits)
        if folded_scan.is_right or (norm is likely[-1] and folded_scan.correlation > scan.correlation + 0.01):
            pair.fold(norm)
            pair.use_folded = True
            return folded, folded_scan
    return rows, scan


def _quick(pair: Pair, norm: Norm) -> Scan:
    """Look at some channels of the layer with a batch norm folded in."""
    ints = pair.layer.ints
    return scan_weight(ints, ints.as_rows(pair.fold_with(norm)[0]), pair.partner.limits, QUICK)


def _bias_error(pair: Pair, norm: Norm) -> float:
    folded, source = pair.fold_with(norm)[1], pair.layer.bias
    return float((folded - source).abs().max()) if source is not None and folded.shape == source.shape else 0.0


def _explains(pair: Pair, norm: Norm) -> bool:
    return _quick(pair, norm).is_right
