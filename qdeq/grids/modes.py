"""What becomes of the int8 model's activation quantization in the rebuilt model: dropped, clamped, imitated or kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.grids.exact import SUMMING, ExactInput, use_integer_sums
from qdeq.grids.follow import Owner, Sites, follow
from qdeq.grids.grid import Grid, Output, default_dtype
from qdeq.grids.modules import Clamp, FakeQuantize, PostProcess
from qdeq.grids.nodes import drop_nodes
from qdeq.grids.place import place
from qdeq.grids.rules import Site
from qdeq.grids.trials import why_not_exact
from qdeq.report import Report
from qdeq.tree.post_process import install, remove
from qdeq.tree.rewriting import restore
from qdeq.weights.weight import QuantizedWeight

__all__ = ["Rounded", "check_mode", "drop_activations", "imitate"]

_MODES = ("drop", "clamp", "fake_quant", "exact")


def check_mode(activations: object, dtype: torch.dtype, unfold_bn: bool | float) -> None:
    """Refuse anything but the four modes, and what ``"exact"`` cannot go with."""
    if activations not in _MODES:
        what = f"one of {', '.join(_MODES)}"
        raise QdeqValueError(expected("activations", what, repr(activations), 'Pass "drop" for the float model alone.'))
    if activations == "exact" and dtype != torch.float32:
        remedy = 'Pass dtype=torch.float32, or activations="fake_quant".'
        raise QdeqValueError(expected("dtype", 'torch.float32 with activations="exact"', str(dtype), remedy))
    if activations == "exact" and unfold_bn:
        remedy = 'Leave it out, or pass activations="fake_quant".'
        raise QdeqValueError(expected("unfold_bn", 'False with activations="exact"', repr(unfold_bn), remedy))


@dataclass(frozen=True, eq=False)
class Rounded:
    """A quantized layer and what stands for it in the rebuilt model.

    Attributes:
        path: its dotted path.
        source_class: its class in the source.
        output: how it rounds its output; None for a float output.
        module: its float module.
        carrier: what gives its output: the module, or the activation or BatchNorm that was fused into it.
        dynamic: it quantizes its input anew at every call.
        dequantizes: it gives float values.
        registered: a builder of the user's own made the module; how the source rounds is not known.
        kind: class of the float module, without its activation.
        relu: the module applies a ReLU of its own.
        weight: reads its quantized weight; None where it has not exactly one.

    """

    path: str
    source_class: str
    output: Output | None
    module: nn.Module
    carrier: nn.Module
    dynamic: bool
    dequantizes: bool
    registered: bool
    kind: Callable[..., nn.Module]
    relu: bool
    weight: Callable[[], QuantizedWeight] | None


def imitate(model: nn.Module, layers: Sequence[Rounded], mode: str, report: Report) -> None:
    """Give every converted output of a rebuilt model its Clamp or FakeQuantize, in place.

    Args:
        model: the rebuilt model.
        layers: what was quantized in its source.
        mode: ``"drop"`` does nothing.
        report: what cannot be imitated is named in ``uncovered``.

    """
    if mode == "drop":
        return
    default = default_dtype([layer.output for layer in layers if layer.output is not None])
    for layer in layers:
        if layer.output is not None:
            install(layer.carrier, _rounding(layer, layer.output, mode, default))
    for layer in layers:
        if layer.dynamic:
            reason = "its input is quantized anew at every call, with no fixed scale"
            report.leave_uncovered(layer.path, layer.source_class, reason)
        if layer.registered:
            reason = "a registered builder made it, and says nothing of how its output is rounded"
            report.leave_uncovered(layer.path, layer.source_class, reason)
    if mode in ("fake_quant", "exact"):
        ends = {id(layer.module) for layer in layers if layer.dequantizes}
        inner = {id(layer.module) for layer in layers if layer.module is not layer.carrier}
        found = follow(model, ends, inner, report)
        place(found, report)
        if mode == "exact":
            _make_exact(layers, found, default, report)


def _rounding(layer: Rounded, output: Output, mode: str, default: str) -> PostProcess:
    grid = output.grid(default)
    if mode == "clamp":
        return Clamp(grid)
    if mode == "exact" and layer.kind is nn.Identity:
        return ExactInput(grid)
    return FakeQuantize(grid, zero_point_first=output.zero_point_first)


def _make_exact(layers: Sequence[Rounded], found: Sites, default: str, report: Report) -> None:
    """Let every layer that sums integers give its int8 layer's output; name what may give another."""
    for layer in layers:
        given = found.inputs.get(id(layer.module), [])
        reason = "" if layer.output is None else _why_not(layer, given, layer.output.grid(default))
        if reason:
            report.leave_uncovered(layer.path, layer.source_class, reason)
    rounding = [sites for _, sites in found.modules.values()]
    rounding += [sites for owner in found.owners.values() if isinstance(owner, Owner) for sites in owner.sites.values()]
    for site in [*found.rounded, *(site for sites in rounding for site in sites)]:
        reason = why_not_exact(site)
        if reason:
            report.leave_uncovered(site.path, site.operation, reason)


def _why_not(layer: Rounded, given: list[Grid | None], grid: Grid) -> str:
    """Make a layer exact, or say why it may give another value than the int8 layer."""
    if layer.kind in SUMMING and layer.weight is not None:
        engine = "" if layer.output is None else layer.output.engine
        return use_integer_sums(layer.module, layer.kind, engine, layer.weight, given, grid, relu=layer.relu)
    if layer.kind is nn.Identity or not given or layer.registered:
        return ""  # rounds as torch quantizes; has no input of its own, as FloatFunctional; is named already
    reasons = (
        why_not_exact(
            Site(layer.path, layer.source_class, grid, given=(one,), replay=layer.module.forward), layer.module
        )
        for one in dict.fromkeys(given)
        if one is not None
    )
    return "the grid of its input is not known" if None in given else next(filter(None, reasons), "")


def drop_activations(model: nn.Module) -> nn.Module:
    """The float model alone, from one rebuilt with ``activations="clamp"``, ``"fake_quant"`` or ``"exact"``.

    Args:
        model: result of :func:`qdeq.dequantize_model`, possibly trained since; it is not changed.

    Returns:
        A copy that is what ``activations="drop"`` would have built, with the parameters' present values: no
        ``activation_post_process``, the classes' own forwards, the float architecture's state_dict keys.

    Raises:
        QdeqTypeError: ``model`` is not a module.

    """
    if not isinstance(model, nn.Module):
        remedy = "Pass what dequantize_model returned."
        raise QdeqTypeError(expected("model", "a torch.nn.Module", type(model).__name__, remedy))
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        restore(module)
        drop_nodes(module)
        remove(module, PostProcess)
    return copied
