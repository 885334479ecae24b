"""What torch does not save, or saves wrongly: constants of activations, and one kind of transposed convolution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from qdeq.state_dicts.naming import CONSTANTS
from qdeq.state_dicts.parts import Fold, Plan, Rowwise, Scaled, Stack
from qdeq.weights.direct_conv import ConvGeometry, saved_weight_doubt
from qdeq.words import join

__all__ = ["constants_of", "doubts", "lost_names", "remedy_for"]

_CLASSES: dict[type[nn.Module], tuple[str, bool]] = {nn.ELU: ("alpha", True), nn.LeakyReLU: ("negative_slope", False)}
"""Activation -> its constant, and whether a load must not go on without it."""
assert {name for name, _ in _CLASSES.values()} == set(CONSTANTS)


def doubts(
    plan: Plan, stride_of: Callable[[Any], tuple[Sequence[int], str | None]], geometries: Mapping[str, ConvGeometry]
) -> dict[str, str]:
    """Weights in ``plan`` that may be uninitialized memory: float name -> why.

    Args:
        plan: what there is.
        stride_of: strides of a tensor as it was saved, in values, and torch's name of its scheme, None for a float one.
        geometries: key of a convolution -> how it was set up, where that is known.

    """
    found = {}
    for name, target in plan.targets.items():
        if not isinstance(target.value, Fold | Rowwise | Scaled | Stack):
            stride, qscheme = stride_of(target.value)
            why = saved_weight_doubt(target.value.shape, stride, qscheme, geometries.get(target.source))
            if why:
                found[name] = why
    return found


def lost_names(model: nn.Module, names: Mapping[str, str], doubtful: Mapping[str, str]) -> dict[str, str]:
    """The doubts that remain when the float class is known: name in the model -> why.

    Args:
        model: the float model.
        names: name in the model -> float name of its source.
        doubtful: float name of a source -> why its weight may be wrong.

    """
    modules = dict(model.named_modules())
    found = {}
    for name, source in names.items():
        module = modules.get(name.rpartition(".")[0])
        convolution = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        if source in doubtful and not (convolution and not ConvGeometry.of(module).may_be_direct()):
            found[name] = doubtful[source]
    return found


def constants_of(model: nn.Module) -> dict[str, tuple[float, bool]]:
    """Constants of a float model's activations by dotted name, and whether a load must not go on without each."""
    found = {}
    for path, module in model.named_modules():
        if type(module) in _CLASSES:
            attribute, must = _CLASSES[type(module)]
            found[join(path, attribute)] = (float(getattr(module, attribute)), must)
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
