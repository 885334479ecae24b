"""What becomes of the int8 model's activation quantization in the rebuilt model: dropped, clamped, imitated or kept."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.grids.follow import follow
from qdeq.grids.grid import default_dtype
from qdeq.grids.modules import Clamp, FakeQuantize, PostProcess
from qdeq.grids.nodes import drop_nodes
from qdeq.grids.place import place
from qdeq.grids.rounded import Rounded
from qdeq.report import Report
from qdeq.tree.post_process import install, remove
from qdeq.tree.rewriting import restore

__all__ = ["check_mode", "drop_activations", "imitate"]

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


def imitate(model: nn.Module, layers: Sequence[Rounded], mode: str, report: Report) -> None:
    """Give every converted output of a rebuilt model its Clamp or FakeQuantize, in place.

    Args:
        model: the rebuilt model.
        layers: what was quantized in its source.
        mode: ``"drop"`` does nothing; ``"exact"`` is ``"fake_quant"`` here, for :func:`qdeq.grids.exact.make_exact`.
        report: what cannot be imitated is named in ``uncovered``.

    """
    if mode == "drop":
        return
    default = default_dtype([layer.output for layer in layers if layer.output is not None])
    for layer in layers:
        if layer.output is not None:
            grid = layer.output.grid(default)
            first = layer.output.zero_point_first
            child = Clamp(grid) if mode == "clamp" else FakeQuantize(grid, zero_point_first=first)
            install(layer.carrier, child)
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
        place(follow(model, ends, inner, report), report)


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
