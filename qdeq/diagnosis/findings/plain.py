"""Findings about what is not quantized, and about what cannot be read."""

from __future__ import annotations

import torch

from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.float_side import float_tensors, renaming_of
from qdeq.diagnosis.sides.integers import Int8Side
from qdeq.diagnosis.sides.open import Side
from qdeq.words import join

__all__ = ["plain_findings", "unread_findings"]

# Such tensors are copied, so they are equal but for the rounding of either side's dtype.
SAME = 1e-5


def plain_findings(held: Int8Side, side: Side, total_weights: int) -> list[Finding]:
    """Compare the tensors that are not quantized by name: one finding for each module that has a wrong one.

    A name that the float side lacks is reported as not compared.
    """
    theirs, renamed = float_tensors(side), renaming_of(held, side)
    wrong: dict[str, dict[str, float]] = {}
    count: dict[str, int] = {}
    missing: dict[str, str] = {}
    for tensor in held.plain:
        module, name = renamed(tensor.path).rpartition(".")[::2]
        # Fusing moves a module into a container, which takes its name and calls it "0".
        other = theirs.get(join(module, name), theirs.get(join(f"{module}.0", name)))
        if other is None:
            missing[tensor.path] = "the float model has no tensor of this name"
            continue
        size = float(tensor.value.abs().max()) if tensor.value.numel() else 0.0
        error = float("inf")
        if other.shape == tensor.value.shape:
            difference = (other.to(torch.float32) - tensor.value.to(torch.float32)).abs()
            error = float(difference.max()) if difference.numel() else 0.0
        rounding = max(torch.finfo(value.dtype).eps for value in (other, tensor.value))
        if not error <= max(SAME, rounding) * size:
            wrong.setdefault(tensor.module, {})[tensor.name] = error
            count[tensor.module] = count.get(tensor.module, 0) + tensor.value.numel()
    found = []
    for module, errors in wrong.items():
        names = ", ".join(f"{name} (by up to {error:.3g})" for name, error in errors.items())
        text = f"{module or 'the model'}: not quantized, and other values than in the int8 model: {names}"
        share = min(1.0, count[module] / total_weights)
        found.append(make_finding(module, "parameter_wrong", text, {"max_error": errors}, share))
    return found + unread_findings(missing)


def unread_findings(unread: dict[str, str]) -> list[Finding]:
    """Say what nothing is known about: such a model does not count as agreeing."""
    return [
        make_finding(path, "not_compared", f"{path or 'the model'}: not compared: {reason}", {"reason": reason})
        for path, reason in unread.items()
    ]
