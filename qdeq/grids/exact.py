"""``activations="exact"``: a model that rounds as the int8 one, made to give its very values; what may not is named."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qdeq.grids.exact_sums import SUMMING, ExactInput, use_integer_sums
from qdeq.grids.follow import follow_rounded
from qdeq.grids.grid import Grid, default_dtype
from qdeq.grids.modules import FakeQuantize
from qdeq.grids.rounded import Rounded
from qdeq.grids.rules import Site
from qdeq.grids.trials import why_not_exact
from qdeq.report import Report
from qdeq.tree.walk import every_module

__all__ = ["make_exact"]


def make_exact(model: nn.Module, layers: Sequence[Rounded], report: Report) -> None:
    """Let every layer that sums integers give its int8 layer's output; name each operation that may give another.

    Args:
        model: rebuilt with the roundings of ``"fake_quant"``; changed in place.
        layers: what was quantized in its source.
        report: gets what may give other values, in ``uncovered``.

    """
    default = default_dtype([layer.output for layer in layers if layer.output is not None])
    ends = {id(layer.module) for layer in layers if layer.dequantizes}
    found = follow_rounded(model, ends, {id(layer.module) for layer in layers})
    for layer in layers:
        given = found.inputs.get(id(layer.module), [])
        reason = "" if layer.output is None else _make_exact(layer, given, layer.output.grid(default))
        if reason:
            report.leave_uncovered(layer.path, layer.source_class, reason)
    for site in found.rounded:
        reason = why_not_exact(site)
        if reason:
            report.leave_uncovered(site.path, site.operation, reason)
    for _, module in list(every_module(model)):
        for name, child in module._modules.items():
            if type(child) is FakeQuantize and child.zero_point_first:
                module._modules[name] = ExactInput.of(child)


def _make_exact(layer: Rounded, given: Sequence[Grid | None], grid: Grid) -> str:
    """Make a layer exact, or say why it may give another value than the int8 layer."""
    if layer.kind in SUMMING and layer.weight is not None:
        engine = "" if layer.output is None else layer.output.engine
        return use_integer_sums(layer.module, layer.kind, engine, layer.weight, given, grid, relu=layer.relu)
    if layer.kind is nn.Identity or not given or layer.registered:
        return ""  # rounds as torch quantizes; has no input of its own, as FloatFunctional; is named already
    if None in given:
        return "the grid of its input is not known"
    tried = (
        Site(layer.path, layer.source_class, grid, given=(one,), replay=layer.module.forward) for one in given if one
    )
    return next((reason for site in tried if (reason := why_not_exact(site, layer.module))), "")
