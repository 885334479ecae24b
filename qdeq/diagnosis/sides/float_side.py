"""Reads the float side of a diagnosis: every weight of two dimensions or more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.sides.integers import FloatLayer, Int8Side
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqValueError
from qdeq.layers.batch_norm import NormValues, fold_batch_norm
from qdeq.layers.names import bias_name, is_inner_weight
from qdeq.state_dicts.named import tensors_of
from qdeq.state_dicts.norms import norms_behind_names
from qdeq.state_dicts.parts import Fold, Plan
from qdeq.state_dicts.prefixes import find_renaming
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import class_name, join

__all__ = ["float_layers", "float_tensors", "renaming_of", "state_norms"]


def float_layers(side: Side) -> dict[str, FloatLayer]:
    """Path -> weight, of a model or a state_dict."""
    if side.model is None:
        return {layer.path: layer for layer in _layers_of_state(side.plan)}
    layers = {}
    for path, module in side.model.named_modules():
        plain = _plain_layer(path, module)
        if plain is not None:
            layers[path] = plain
        layers.update((layer.path, layer) for layer in _named_layers(path, module))
    return layers


def float_tensors(side: Side) -> dict[str, Tensor]:
    """Dotted name -> every floating parameter and buffer."""
    if side.model is None:
        named: Any = (side.state or {}).items()
    else:
        named = [
            *side.model.named_parameters(remove_duplicate=False),
            *side.model.named_buffers(remove_duplicate=False),
        ]
    return {name: v.detach() for name, v in named if isinstance(v, Tensor) and v.is_floating_point()}


def renaming_of(held: Int8Side, side: Side) -> Callable[[str], str]:
    """Dotted names of the int8 side -> those of the float side: either may have a prefix or a wrapper."""
    ours = {join(layer.module, layer.parameter): layer.shape for layer in held.layers}
    ours |= {tensor.path: tuple(tensor.value.shape) for tensor in held.plain}
    theirs = {name: tuple(value.shape) for name, value in float_tensors(side).items()}
    try:
        found = find_renaming("float_model", ours, theirs, "Pass the part that belongs to the int8 model.")
    except QdeqValueError:  # two parts fit alike: none is taken
        return _same
    # Names alone are no evidence that two networks are forms of one.
    return found if any(ours[a] == theirs[b] for a, b in found.names.items()) else _same


def _same(name: str) -> str:
    return name


def _plain_layer(path: str, module: nn.Module) -> FloatLayer | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not weight.is_floating_point():
        return None
    bias = getattr(module, "bias", None)
    weight, bias = weight.detach(), bias.detach() if isinstance(bias, Tensor) else None
    turned = bool(getattr(module, "transposed", False))
    inner = getattr(module, "bn", None)
    if isinstance(inner, nn.modules.batchnorm._BatchNorm):
        weight, bias = fold_batch_norm(weight, bias, NormValues.of(inner), transposed=turned)
    return FloatLayer(path, class_name(module), weight, bias, limits=_recipe_limits(module), transposed=turned)


def _recipe_limits(module: nn.Module) -> tuple[int, int] | None:
    """Smallest and largest integer by the fake quantization that a prepared layer has for its weight."""
    rounding = getattr(module, "weight_fake_quant", None)
    low, high = getattr(rounding, "quant_min", None), getattr(rounding, "quant_max", None)
    return (int(low), int(high)) if isinstance(low, int) and isinstance(high, int) else None


def _named_layers(path: str, module: nn.Module) -> Iterator[FloatLayer]:
    for name, value in module._parameters.items():
        if value is not None and is_inner_weight(name) and value.is_floating_point():
            bias = module._parameters.get(bias_name(name))
            yield FloatLayer(
                join(path, name), class_name(module), value.detach(), None if bias is None else bias.detach(), name
            )


def _layers_of_state(plan: Plan) -> Iterator[FloatLayer]:
    folds = {name: target.value.parts for name, target in plan.targets.items() if isinstance(target.value, Fold)}
    for tensor in tensors_of("float_model", plan):
        value, alone = tensor.value, tensor.parameter == "weight"
        if isinstance(value, QuantizedWeight) or not value.is_floating_point() or value.ndim < 2:
            continue
        at = tensor.path if alone else tensor.name
        if tensor.name in folds:
            weight, bias, *norm = folds[tensor.name]
            yield FloatLayer(at, "", weight.detach(), bias, tensor.parameter, transposed=False, norm=NormValues(*norm))
        elif alone or is_inner_weight(tensor.parameter):
            yield FloatLayer(at, "", value.detach(), tensor.bias, tensor.parameter)


def state_norms(side: Side) -> tuple[dict[str, NormValues], dict[str, str]]:
    """Batch norms of a state_dict, path -> values, with torch's eps; layer -> the one that names say is behind it."""
    tensors = {tensor.name: tensor.value for tensor in tensors_of("float_model", side.plan)}
    norms: dict[str, NormValues] = {}
    for path in [name.removesuffix(".running_var") for name in tensors if name.endswith(".running_var")]:
        weight, bias, mean, variance = (
            value if isinstance(value := tensors.get(join(path, part)), Tensor) else None
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        if mean is not None and variance is not None:
            weight = torch.ones_like(mean) if weight is None else weight
            norms[path] = NormValues(weight, torch.zeros_like(mean) if bias is None else bias, mean, variance)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return norms, norms_behind_names(shapes).pairs
