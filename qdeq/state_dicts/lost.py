"""What torch does not save, or saves wrongly: constants of activations, and one kind of transposed convolution.

**Direct convolutions.** fbgemm packs a ConvTranspose2d of kernel (2, 1..6), stride 1 or 2, no padding, no dilation and
one group, whose channels are multiples of 8, in a form that torch reads uninitialized memory from (FBGEMM,
src/FbgemmConv.cc, takeDirectConvPath). A state dict does not say which class a weight belongs to, but it keeps strides,
and those of fbgemm's transposed convolutions are their own: (1, in * h * w, w * in, in) for a shape (in, out, h, w).
Plain convolutions never have them, nor do the other engines' transposed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdeq.state_dicts.naming import CONSTANTS
from qdeq.state_dicts.parts import join

__all__ = ["Constants", "ConvGeometry", "check_constants", "direct_conv_doubt", "lost_names", "remedy_for"]

_CLASSES: dict[type[nn.Module], tuple[str, bool]] = {nn.ELU: ("alpha", True), nn.LeakyReLU: ("negative_slope", False)}
"""Activation -> its constant, and whether a load must not go on without it."""
assert {name for name, _ in _CLASSES.values()} == set(CONSTANTS)


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution was set up."""

    transposed: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(cls, module: Any) -> ConvGeometry:
        """Read the attributes of a float convolution."""
        transposed = isinstance(module, nn.ConvTranspose2d)
        return cls(transposed, module.stride, module.padding, module.dilation, module.groups)

    def may_be_direct(self) -> bool:
        """Whether fbgemm packs a weight of the right shape directly."""
        plain = not any(self.padding) and all(step == 1 for step in self.dilation)
        return self.transposed and plain and self.groups == 1 and all(step in (1, 2) for step in self.stride)


def direct_conv_doubt(
    shape: Sequence[int], stride: Sequence[int], qscheme: str | None, geometry: ConvGeometry | None
) -> str:
    """Say why the weight of a convolution may be uninitialized memory; empty if it is not.

    Args:
        shape: of the weight.
        stride: of the weight as it was saved, in values.
        qscheme: torch's name of the scheme; None for a float weight.
        geometry: of the convolution; None where only the weight is known.

    """
    if qscheme != "per_tensor_affine" or len(shape) != 4 or (geometry is not None and not geometry.may_be_direct()):
        return ""
    channels_in, channels_out, height, width = shape
    if height != 2 or not 1 <= width <= 6 or channels_in % 8 or channels_out % 8 or not channels_in or not channels_out:
        return ""
    of_fbgemm = (1, channels_in * height * width, width * channels_in, channels_in)
    if any(step != own for step, own, size in zip(stride, of_fbgemm, shape, strict=True) if size > 1):
        return ""
    if geometry is None:
        what = (
            "one of the shape and layout of fbgemm's direct transposed convolution. If this is a ConvTranspose2d with "
        )
        what += "stride 1 or 2, no padding and groups 1, torch"
    else:
        what = "fbgemm's direct transposed convolution: torch"
    way = (
        "convert the live model with qdeq.dequantize_model(recover_direct_conv=True), or take the float model's weight"
    )
    return f"{what} saved uninitialized memory here; {way}"


def lost_names(model: nn.Module, names: Mapping[str, str], doubtful: Mapping[str, str]) -> dict[str, str]:
    """The doubts that remain when the float class is known.

    Args:
        model: the float model.
        names: name in the model -> float name of its source.
        doubtful: float name of a source -> why its weight may be wrong.

    Returns:
        Name in the model -> why.

    """
    modules = dict(model.named_modules())
    found = {}
    for name, source in names.items():
        module = modules.get(name.rpartition(".")[0])
        convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if source in doubtful and not (convolution and not ConvGeometry.of(module).may_be_direct()):
            found[name] = doubtful[source]
    return found


@dataclass(frozen=True)
class Constants:
    """Constants of a float model's activations, by dotted name, beside what a source says of them.

    Attributes:
        needed: the source does not hold them, and a load must not go on without: name -> the class's value.
        noted: the source does not hold them: name -> the class's value.
        differing: name -> the source's value and the class's.

    """

    needed: dict[str, float]
    noted: dict[str, float]
    differing: dict[str, tuple[float, float]]


def check_constants(model: nn.Module, known: Mapping[str, float]) -> Constants:
    """Compare the constants of the activations of ``model`` with those that a source holds (dotted name -> value)."""
    found = Constants({}, {}, {})
    for path, module in model.named_modules():
        if type(module) not in _CLASSES:
            continue
        attribute, must = _CLASSES[type(module)]
        name, own = join(path, attribute), float(getattr(module, attribute))
        if name not in known:
            (found.needed if must else found.noted)[name] = own
        elif known[name] != own:
            found.differing[name] = (known[name], own)
    return found


def remedy_for(model: nn.Module, missing: Sequence[str]) -> str:
    """Say what to do about parameters without a source that torch never saves; empty if there are none."""
    modules = dict(model.named_modules())
    kinds: dict[type[nn.Module], str] = {
        nn.PReLU: "slopes of a quantized PReLU",
        nn.ELU: "alpha of a quantized ELU",
        nn.MultiheadAttention: "bias_k and bias_v of a quantized MultiheadAttention",
    }
    lost: dict[type[nn.Module], list[str]] = {}
    for name in missing:
        module = modules.get(name.rpartition(".")[0])
        kind = type(module) if module is not None else nn.Module
        if kind in kinds and (kind is not nn.MultiheadAttention or name.endswith(("bias_k", "bias_v"))):
            lost.setdefault(kind, []).append(name)
    if not lost:
        return ""
    texts = [
        f"torch saves no {kinds[kind]}, so its state dict does not hold {', '.join(n)}" for kind, n in lost.items()
    ]
    name = next(iter(lost.values()))[0]
    return (
        f"{'; '.join(texts)}. Convert the live model with qdeq.dequantize_model, save it whole (torch.save(model)) and "
        f"pass qdeq.open of that, put what you know into the state dict ({{**sd, {name!r}: ...}}), or pass "
        "strict=False to keep what the model has."
    )
