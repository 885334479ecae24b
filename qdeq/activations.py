"""What becomes of the int8 model's activation quantization in the rebuilt model: dropped, clamped or imitated.

``convert()`` gives every quantized operation a scale and a zero point for its output. The float model has no use for
them (``activations="drop"``). ``"clamp"`` limits each output to the range that they can represent; ``"fake_quant"``
rounds it to their grid as well, which is what the int8 model computes. In both modes the module that carries the
output gets a child named ``activation_post_process``, as in torch's prepared models, and a forward hook that calls
it. Classes, parameter names and the float model's forward stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, expected
from qdeq.report import Report

__all__ = [
    "MODES",
    "QPARAMS_RANGES",
    "Clamp",
    "FakeQuantize",
    "Qparams",
    "attach",
    "drop_activations",
    "install",
    "post_process",
    "remove_all",
]

MODES = ("drop", "clamp", "fake_quant")
CHILD = "activation_post_process"

# What a converted operation clamps to. A qconfig's reduce_range only chose the scale; it does not bound the result.
QPARAMS_RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127), torch.qint32: (-(2**31), 2**31 - 1)}


@dataclass(frozen=True)
class Qparams:
    """Scale, zero point and integer range of one quantized activation."""

    scale: float
    zero_point: int
    quant_min: int = 0
    quant_max: int = 255


class _PostProcess(nn.Module):
    """Holds an activation's scale and zero point as buffers.

    Buffers:
        scale: float32, 0-d. It stays float32 when the model is cast: bfloat16 would change the grid by up to 0.4 %.
        zero_point: int32, 0-d.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, qparams: Qparams) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(qparams.scale, dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(qparams.zero_point, dtype=torch.int32))
        self.quant_min = qparams.quant_min
        self.quant_max = qparams.quant_max

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = self.scale
        result = super()._apply(fn, recurse)
        if self.scale.dtype != torch.float32:
            self.scale = before.to(self.scale.device)
        return result

    def extra_repr(self) -> str:
        """Scale, zero point and range, as ``print(model)`` shows them."""
        values = "" if self.scale.is_meta else f"scale={float(self.scale):g}, zero_point={int(self.zero_point)}, "
        return f"{values}range=[{self.quant_min}, {self.quant_max}]"


class Clamp(_PostProcess):
    """Clamps to the values that scale and zero point can represent, without rounding."""

    def forward(self, input: Tensor) -> Tensor:
        """Clamp a float tensor of any shape; the gradient is that of ``torch.clamp``."""
        low = (self.quant_min - self.zero_point) * self.scale
        high = (self.quant_max - self.zero_point) * self.scale
        return torch.clamp(input, low.to(input.dtype), high.to(input.dtype))


class FakeQuantize(_PostProcess):
    """Quantizes and dequantizes: the value that the int8 model passes on, as a float.

    The gradient is 1 inside the range and 0 outside (straight through). Goes to ONNX as QuantizeLinear and
    DequantizeLinear. bfloat16 and float16 inputs are rounded to the grid in float32.

    Args:
        qparams: the grid.
        averages: the input is an average of values on this same grid. The int8 kernels average integers, so an
            average halfway between two grid points is exactly halfway and goes to the even one; a float average
            lands beside it. With True such ties are found first, to 1/4096 of a step.
    """

    def __init__(self, qparams: Qparams, *, averages: bool = False) -> None:
        super().__init__(qparams)
        self.averages = averages

    def forward(self, input: Tensor) -> Tensor:
        """Round a float tensor of any shape to the grid."""
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        if self.averages:
            steps = torch.round(torch.round(wide.detach() / self.scale * 4096) / 4096)
            wide = wide + (steps * self.scale - wide).detach()
        rounded = torch.fake_quantize_per_tensor_affine(
            wide, self.scale, self.zero_point, self.quant_min, self.quant_max
        )
        return rounded.to(input.dtype)


def post_process(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: passes the output of a module on through its ``activation_post_process``."""
    del args
    return module.activation_post_process(output)


def install(module: nn.Module, child: nn.Module) -> None:
    """Let ``child`` post-process every output of ``module``.

    torch's FloatFunctional calls a child of this name itself; any other module gets a forward hook, which runs
    before the user's own hooks: those see what the int8 model's hooks saw.
    """
    child.train(module.training)
    setattr(module, CHILD, child)
    if not _calls_child_itself(module):
        module.register_forward_hook(post_process, prepend=True)


def _calls_child_itself(module: nn.Module) -> bool:
    from torch.ao.nn.quantized import FloatFunctional

    return isinstance(module, FloatFunctional)


def attach(carriers: Mapping[str, nn.Module], dtype: torch.dtype, mode: str, report: Report) -> None:
    """Give every converted output of a rebuilt model its Clamp or FakeQuantize.

    Args:
        carriers: dotted path of a converted module -> the float module that carries its output: the layer, or the
            activation that was fused into it.
        dtype: quantized dtype of the activations.
        mode: ``"clamp"`` or ``"fake_quant"``.
        report: its ``activation_qparams`` are used; what cannot be placed goes to ``uncovered``.
    """
    bounds = QPARAMS_RANGES[dtype]
    kind = Clamp if mode == "clamp" else FakeQuantize
    for path, (scale, zero_point) in report.activation_qparams.items():
        carrier = carriers.get(path)
        if carrier is None:
            report.leave_uncovered(path, "output", "the float module has no place for an activation inside it")
        else:
            install(carrier, kind(Qparams(scale, zero_point, *bounds)))
    for path, (source, _) in report.replaced.items():
        if ".dynamic." in source:
            report.leave_uncovered(path, source, "its input is quantized anew at every call, with no fixed scale")


def remove_all(model: nn.Module) -> None:
    """Take every Clamp, FakeQuantize and rewritten forward out of ``model``, in place."""
    from qdeq.rewrite import restore

    for module in list(model.modules()):
        restore(module)
        for name, child in list(module.named_children()):
            if isinstance(child, _PostProcess):
                delattr(module, name)
        for key, hook in list(module._forward_hooks.items()):
            if hook is post_process:
                del module._forward_hooks[key]
        if _calls_child_itself(module):
            module.activation_post_process = nn.Identity()


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
    remove_all(copied)
    return copied
