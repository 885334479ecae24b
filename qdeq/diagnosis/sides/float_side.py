"""Reads the float side of a diagnosis: every weight of two dimensions or more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from qdeq.diagnosis.sides.integers import FloatLayer
from qdeq.diagnosis.sides.open import Side
from qdeq.layers.batch_norm import NormValues, fold_batch_norm
from qdeq.layers.names import bias_name, is_inner_weight
from qdeq.state_dicts.named import named_tensors
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import class_name, join

__all__ = ["float_layers", "float_tensors"]


def float_layers(side: Side) -> dict[str, FloatLayer]:
    """Path -> weight, of a model or a state_dict."""
    if side.model is None:
        return {layer.path: layer for layer in _layers_of_state(side.state or {})}
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


def _plain_layer(path: str, module: nn.Module) -> FloatLayer | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not weight.is_floating_point():
        return None
    bias = getattr(module, "bias", None)
    weight, bias = weight.detach(), bias.detach() if isinstance(bias, Tensor) else None
    inner = getattr(module, "bn", None)
    if isinstance(inner, nn.modules.batchnorm._BatchNorm):
        weight, bias = fold_batch_norm(
            weight, bias, NormValues.of(inner), transposed=getattr(module, "transposed", False)
        )
    return FloatLayer(path, class_name(module), weight, bias)


def _named_layers(path: str, module: nn.Module) -> Iterator[FloatLayer]:
    for name, value in module._parameters.items():
        if value is not None and is_inner_weight(name) and value.is_floating_point():
            bias = module._parameters.get(bias_name(name))
            yield FloatLayer(
                join(path, name), class_name(module), value.detach(), None if bias is None else bias.detach(), name
            )


def _layers_of_state(state: Mapping[str, Any]) -> Iterator[FloatLayer]:
    for tensor in named_tensors("float_model", state):
        value, alone = tensor.value, tensor.parameter == "weight"
        if isinstance(value, QuantizedWeight) or not value.is_floating_point() or value.ndim < 2:
            continue
        if alone or is_inner_weight(tensor.parameter):
            at = tensor.path if alone else tensor.name
            yield FloatLayer(at, "", value.detach(), tensor.bias, tensor.parameter)
