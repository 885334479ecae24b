"""Findings about the stubs: where the int8 model quantizes and dequantizes, a float model has an identity."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, FakeQuantize, FusedMovingAvgObsFakeQuantize, QuantStub

from qdeq.diagnosis.results import Finding, make_finding
from qdeq.grids.grid import RANGES
from qdeq.words import dtype_name

__all__ = ["stub_findings"]

_STUBS = (nnq.Quantize, nnq.DeQuantize)
# These classes themselves: what a subclass does is not known.
_IDENTITIES = {nn.Identity, QuantStub, DeQuantStub, FakeQuantize, FusedMovingAvgObsFakeQuantize}
# A module that may expect images is asked with images.
_SHAPES = ((64,), (1, 64), (1, 1, 8, 8), (1, 3, 8, 8))


def stub_findings(int8_model: nn.Module, float_model: nn.Module) -> list[Finding]:
    """Name float modules that stand in a stub's place and change values that int8 represents.

    A float model without any module there has nothing to lose: a stub is an identity up to rounding.
    """
    theirs = dict(float_model.named_modules())
    found = []
    for path, stub in int8_model.named_modules():
        if not isinstance(stub, _STUBS) or path not in theirs or type(theirs[path]) in _IDENTITIES:
            continue
        low, high, step = _range(stub)
        change = _largest_change(theirs[path], low, high)
        if change is not None and change <= step:
            continue
        known = "nothing that could be run alone" if change is None else f"values changed by up to {change:.3g}"
        name, class_b = type(stub).__name__, type(theirs[path]).__name__
        text = f"{path}: the int8 model has {name} here, an identity but for rounding; the float model has {class_b}"
        evidence = {"class": class_b, "largest_change": change, "step": step}
        found.append(make_finding(path, "quant_stub_lost", f"{text} ({known})", evidence))
    return found


def _range(stub: Any) -> tuple[float, float, float]:
    """(smallest and largest value, step) of a Quantize, by its dtype; -1 to 1 for a DeQuantize, which has none."""
    if isinstance(stub, nnq.DeQuantize):
        return -1.0, 1.0, 1e-6
    low, high = RANGES[dtype_name(stub.dtype)]
    step, zero_point = float(stub.scale), int(stub.zero_point)
    return step * (low - zero_point), step * (high - zero_point), step


def _largest_change(module: nn.Module, low: float, high: float) -> float | None:
    """Run a copy of the module on values from ``low`` to ``high``; None where no shape suits it."""
    for shape in _SHAPES:
        values = torch.linspace(low, high, int(torch.Size(shape).numel())).reshape(shape)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                output = copy.deepcopy(module)(values.clone())
        except Exception:  # noqa: BLE001 (the user's forward may raise anything; the next shape may suit it)
            continue
        if isinstance(output, Tensor) and output.shape == values.shape:
            return float((output - values).abs().max())
    return None
