"""The weight and bias that a prepared layer stands for.

With ``s = bn.weight / sqrt(running_var + eps)``, shaped for the output channel, and ``fq`` the layer's
``weight_fake_quant``:

====================== ===================================================== ===================================
result                 weight                                                bias
====================== ===================================================== ===================================
master, no norm folded ``weight``, its bits                                  ``bias``, its bits
master, norm folded    ``torch.nn.utils.fusion.fuse_*_bn_weights``           from the same call
rounded, no norm       ``fq(weight)``                                        ``bias``
rounded, norm folded   ``fq(weight * s)``, as the layer's forward has it     ``fuse_*_bn_weights``
rounded, norm kept     ``fq(weight * s) / s``; ``weight`` where ``s`` is 0   ``bias``
====================== ===================================================== ===================================

``weight * s`` and torch's fuse, which multiplies by ``rsqrt``, differ in the last bits. ``fq`` goes by the scale that
it holds, whatever its switches say; running it would move its observer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from qdeq.errors import refuse

__all__ = ["folded", "rounded", "unscaled"]


def folded(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """A layer's weight (output channels first) and bias with the batch norm behind it, by torch's own functions."""
    values = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    with torch.no_grad():
        if weight.dim() == 2:
            return fuse_linear_bn_weights(weight, bias, *values)
        return fuse_conv_bn_weights(weight, bias, *values)


@torch.no_grad()
def rounded(where: str, weight: Tensor, fake_quant: Any, norm: Any = None) -> Tensor:
    """The weight on the grid of its fake quantization, the factor of ``norm`` in it if one is given.

    Raises:
        QdeqValueError: the fake quantization has never seen data, or is of a kind that has no scale.

    """
    if not isinstance(fake_quant, FakeQuantizeBase):
        remedy = 'Pass weights="master", or convert the model and pass the result.'
        got = "none" if fake_quant is None else type(fake_quant).__name__
        refuse(where, "a fake quantization of the weight, as prepare_qat puts there", got, remedy)
    if norm is not None:
        weight = weight * _factor(norm, weight)
    scale, zero_point = getattr(fake_quant, "scale", None), getattr(fake_quant, "zero_point", None)
    if not isinstance(scale, Tensor) or not isinstance(zero_point, Tensor) or _never_ran(fake_quant, weight):
        remedy = 'Run the model on data first, or pass weights="master".'
        refuse(where, "a fake quantization that has seen the weight", "one that never ran", remedy)
    low, high = int(fake_quant.quant_min), int(fake_quant.quant_max)  # type: ignore[arg-type]
    if not getattr(fake_quant, "is_per_channel", False):
        one, zero = scale.detach().reshape(()).float(), zero_point.detach().reshape(()).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(weight, one, zero, low, high)
    whole = zero_point.detach() if zero_point.is_floating_point() else zero_point.to(torch.int32)
    axis = int(fake_quant.ch_axis)  # type: ignore[arg-type]
    return torch.fake_quantize_per_channel_affine(weight, scale.detach().float(), whole, axis, low, high)


@torch.no_grad()
def unscaled(weight: Tensor, master: Tensor, norm: Any) -> Tensor:
    """A rounded weight without the factor of its batch norm; the master weight where that factor is zero."""
    factor = _factor(norm, weight)
    return torch.where(factor == 0, master, weight / factor)


def _factor(norm: Any, weight: Tensor) -> Tensor:
    scale = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    factor: Tensor = scale / torch.sqrt(norm.running_var + norm.eps)
    return factor.reshape([-1] + [1] * (weight.dim() - 1))


def _never_ran(fake_quant: nn.Module, weight: Tensor) -> bool:
    scale: Any = fake_quant.scale
    if getattr(fake_quant, "is_per_channel", False) and scale.numel() != weight.shape[int(fake_quant.ch_axis)]:  # type: ignore[arg-type]
        return True
    low = getattr(getattr(fake_quant, "activation_post_process", None), "min_val", None)
    return isinstance(low, Tensor) and (low.numel() == 0 or bool(torch.isinf(low).any()))
