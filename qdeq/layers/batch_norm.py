"""Batch norm in evaluation mode: folded into the layer before it, and as a layer that changes nothing.

A BatchNorm computes ``(x - mean) / sqrt(var + eps) * weight + bias``, one value of each per channel.

**Folded**, as ``torch.nn.utils.fusion.fuse_conv_bn_weights`` does: with ``factor = weight / sqrt(var + eps)`` the
layer's weight becomes ``layer_weight * factor`` and its bias ``(layer_bias - mean) * factor + bias``.

**Put back.** Folding loses the statistics. A float class that still has the BatchNorm needs values for it that change
nothing. Where the class's layer has a bias it keeps the folded one, and the BatchNorm's is 0. Where it has none, as in
the usual ``Conv2d(bias=False)``, ``BatchNorm2d`` pair, the folded bias becomes the BatchNorm's. With mean 0 the formula
is ``x + bias`` exactly if ``weight / sqrt(var + eps)`` is 1. There are two ways, and both stay, because neither can do
the other's work:

- without knowing eps: var = 2**16, weight = 2**8. In float32 any eps up to 2**-9 vanishes in ``2**16 + eps``, or in
  ``1 / sqrt``, which is exactly 2**-8. A larger eps does not vanish, and float16 cannot hold 2**16;
- knowing eps: var = 1 - eps, weight = 1. ``var + eps`` is within half a step of 1, and ``1 / sqrt`` exactly 1. It is
  exact for its own eps only, but for any up to 1 and in every dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.report import Report
from qdeq.words import join

__all__ = ["NormValues", "check_unfold", "fill_identity", "fold_batch_norm", "identity_values", "unfold"]


class NormValues(NamedTuple):
    """What a BatchNorm computes with: float tensors (channels,), and eps, by default torch's."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor
    eps: float = 1e-5

    @classmethod
    def of(cls, norm: Any) -> NormValues:
        """Read a module; ones and zeros stand for what it does not have."""

        def part(name: str, default: Tensor) -> Tensor:
            value = getattr(norm, name)
            return default if value is None else value.detach()

        zeros, ones = torch.zeros(norm.num_features), torch.ones(norm.num_features)
        mean, variance = part("running_mean", zeros), part("running_var", ones)
        return cls(part("weight", ones), part("bias", zeros), mean, variance, norm.eps)

    @property
    def factor(self) -> Tensor:
        """What each channel is multiplied by."""
        return self.weight * torch.rsqrt(self.variance + self.eps)

    @property
    def shift(self) -> Tensor:
        """What is then added to each channel."""
        return self.fold_bias(None)

    def fold_bias(self, bias: Tensor | None) -> Tensor:
        """The bias of the layer before, None for zeros, with this folded in."""
        return ((torch.zeros_like(self.mean) if bias is None else bias) - self.mean) * self.factor + self.bias


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: NormValues, *, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer and the batch norm behind it as one layer.

    Args:
        weight: output channels first; second where ``transposed``.
        bias: (output channels,), or None.
        norm: of as many channels.
        transposed: for a transposed convolution.

    """
    view = [1] * weight.ndim
    view[1 if transposed else 0] = -1
    return weight * norm.factor.view(view), norm.fold_bias(bias)


def identity_values(eps: float | None) -> tuple[float, float]:
    """(running variance, weight) of a BatchNorm with mean 0 that adds its bias and does nothing else, to the bit.

    Args:
        eps: the eps it will run with, at most 1; None for any eps up to 2**-9.

    """
    return (2.0**16, 2.0**8) if eps is None else (1 - eps, 1.0)


_BATCH_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}


def check_unfold(unfold_bn: bool | float, dtype: torch.dtype) -> None:
    """Refuse values of ``unfold_bn`` that cannot give an identity."""
    remedy = "Pass True, or the eps of the float class's BatchNorm, such as 1e-5."
    if not isinstance(unfold_bn, bool | float):
        raise QdeqTypeError(expected("unfold_bn", "a bool or a float", type(unfold_bn).__name__, remedy))
    if not isinstance(unfold_bn, bool) and not 0 < unfold_bn < 1:
        raise QdeqValueError(expected("unfold_bn", "an eps between 0 and 1", unfold_bn, remedy))
    if unfold_bn is True and dtype == torch.float16:
        message = expected("unfold_bn", "a float with dtype=torch.float16, which cannot hold 2**16", True, remedy)
        raise QdeqValueError(message)


def fill_identity(batch_norm: nn.Module, eps: float | None) -> None:
    """Give a BatchNorm the statistics and weight of an exact identity; its bias becomes 0.

    Args:
        batch_norm: an ``nn.BatchNorm1d/2d/3d`` with affine parameters and running statistics, filled in place.
        eps: the eps it will run with, or None for any eps up to 2**-9.

    """
    variance, weight = identity_values(eps)
    with torch.no_grad():
        batch_norm.get_buffer("running_mean").zero_()
        batch_norm.get_buffer("running_var").fill_(variance)
        batch_norm.get_buffer("num_batches_tracked").zero_()
        batch_norm.get_parameter("weight").fill_(weight)
        batch_norm.get_parameter("bias").zero_()


def unfold(
    layer: nn.Module, path: str, slot_path: str, unfold_bn: bool | float, report: Report, *, keep_bias: bool
) -> nn.Module | None:
    """Make the BatchNorm that follows ``layer``, and unless the layer keeps its bias, move that into it.

    Args:
        layer: rebuilt float layer at ``path``.
        path: dotted path of the layer.
        slot_path: dotted path of the ``nn.Identity`` that fusing left for the BatchNorm.
        unfold_bn: True for statistics that suit any eps, or the eps.
        report: the entry of a bias that moves gets its new target.
        keep_bias: whether the float class's layer has a bias beside the BatchNorm.

    Returns:
        The BatchNorm, or None for a layer that no BatchNorm is folded into.

    """
    kind = next((norm for cls, norm in _BATCH_NORMS.items() if isinstance(layer, cls)), None)
    if kind is None:
        return None
    eps = None if unfold_bn is True else float(unfold_bn)
    weight = layer.get_parameter("weight")
    num_features = weight.shape[0]
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        num_features = weight.shape[1] * int(layer.groups)
    batch_norm = kind(num_features, eps=1e-5 if eps is None else eps, dtype=weight.dtype)
    fill_identity(batch_norm, eps)
    bias = layer._parameters.get("bias")
    what = "any eps up to 2**-9" if eps is None else f"eps {eps:g}"
    if bias is None or keep_bias:
        report.note(slot_path, f"{kind.__name__} put back: an exact identity for {what}; {path} has the bias")
    else:
        batch_norm.bias = bias
        layer.bias = None  # type: ignore[assignment]
        report.move(join(path, "bias"), join(slot_path, "bias"), f"torch.nn.{kind.__name__}")
        report.note(slot_path, f"{kind.__name__} put back: bias of {path}, otherwise an exact identity for {what}")
    return batch_norm
