"""What becomes of the int8 model's activation quantization in the rebuilt model: dropped, clamped or imitated."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping

from torch import nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.grids.follow import follow
from qdeq.grids.modules import QPARAMS_RANGES, Clamp, FakeQuantize, Qparams, install, remove
from qdeq.grids.place import place
from qdeq.report import Report
from qdeq.tree.rewriting import restore

__all__ = ["check_mode", "drop_activations", "imitate"]

_MODES = ("drop", "clamp", "fake_quant")


def check_mode(activations: object) -> None:
    """Refuse anything but the three modes."""
    if activations not in _MODES:
        what = f"one of {', '.join(_MODES)}"
        raise QdeqValueError(expected("activations", what, repr(activations), 'Pass "drop" for the float model alone.'))


def imitate(
    model: nn.Module,
    placed: Mapping[str, tuple[nn.Module, nn.Module]],
    mode: str,
    report: Report,
    zero_point_first: Collection[str] = (),
) -> None:
    """Give every converted output of a rebuilt model its Clamp or FakeQuantize, in place.

    Args:
        model: the rebuilt model.
        placed: dotted path of a converted module -> its float layer, and the float module that gives its output:
            the layer itself, or the activation or BatchNorm that was fused into it.
        mode: ``"drop"`` does nothing.
        report: its ``activation_qparams`` are used; what cannot be imitated is named in ``uncovered``.
        zero_point_first: paths of the converted modules that add their zero point before they round.

    """
    if mode == "drop":
        return
    default = _default_range(report)
    for path, (scale, zero_point) in report.activation_qparams.items():
        bounds = QPARAMS_RANGES.get(report.activation_dtypes.get(path, ""), default)
        if path in placed:
            qparams = Qparams(scale, zero_point, *bounds)
            first = path in zero_point_first
            child = Clamp(qparams) if mode == "clamp" else FakeQuantize(qparams, zero_point_first=first)
            install(placed[path][1], child)
        else:
            report.leave_uncovered(path, "output", "the float module has no place for a rounding inside it")
    for path, (source, _) in report.replaced.items():
        if ".dynamic." in source:
            report.leave_uncovered(path, source, "its input is quantized anew at every call, with no fixed scale")
    if mode == "fake_quant":
        ends = {id(placed[path][0]) for path, (source, _) in report.replaced.items() if source.endswith("DeQuantize")}
        inner = {id(layer) for layer, carrier in placed.values() if layer is not carrier}
        place(follow(model, ends, inner, report), report)


def _default_range(report: Report) -> tuple[int, int]:
    """The integer range of outputs whose dtype no module states: they follow the model's input."""
    stated = set(report.activation_dtypes.values())
    return QPARAMS_RANGES[stated.pop()] if len(stated) == 1 else QPARAMS_RANGES["quint8"]


def drop_activations(model: nn.Module) -> nn.Module:
    """The float model alone, from one rebuilt with ``activations="clamp"`` or ``"fake_quant"``.

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
        remove(module)
    return copied
