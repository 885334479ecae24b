"""Names and numbers as a reader expects them."""

from __future__ import annotations

from qdeq.diagnosis.results import Cost

__all__ = ["join_names", "noise_text", "percent"]


def join_names(names: list[str], most: int = 3) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``; beyond ``most`` names the rest is counted."""
    shown = [name or "the model" for name in names]
    if len(shown) > most:
        shown = [*shown[: most - 1], f"{len(shown) - most + 1} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def percent(share: float) -> str:
    """Return a share as a percentage: two digits at the ends of the scale, whole numbers between."""
    value = 100 * share
    if 99.5 <= value < 100:
        return f"{min(value, 99.9):.1f} %"
    if abs(value) < 0.0095:
        return "<0.01 %" if value > 0 else "0 %"
    return f"{value:.2g} %" if 0 < abs(value) < 0.95 else f"{value:.0f} %"


def noise_text(cost: Cost | None) -> str:
    """What something costs, in dB: ``-`` where it was not measured, ``none`` where nothing changes."""
    if cost is None:
        return "-"
    if cost.sqnr_db is not None:
        return f"{cost.sqnr_db:.1f}"
    return "all" if cost.noise > 0 else "none"
