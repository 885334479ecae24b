"""Reads the int8 side of a diagnosis: every quantized weight, what is not quantized, and what cannot be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.sides.integers import Int8Side, IntegerLayer, Integers, PlainTensor, stacked
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqError
from qdeq.layers.layer import Layer
from qdeq.layers.make import part_value
from qdeq.report import Report
from qdeq.sources.eager.recognise import is_packed_object, is_quantized_module, quantized_sources
from qdeq.sources.form import Form, Options
from qdeq.state_dicts.named import plan_state, tensors_of
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.dequant import unpack_source
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import class_name, join

__all__ = ["read_int8_side"]


# Keys under which torch saves packed weights.
_PACKED_KEY = re.compile(r"(^|\.)(_packed_params|_packed_weight_|_all_weight_values)")


def read_int8_side(side: Side) -> Int8Side:
    """Read a model or a state_dict."""
    return _of_state(side.state or {}) if side.form is None else _of_model(side.source, side.form)


def _of_model(model: Any, form: Form) -> Int8Side:
    found = Int8Side()
    described = form.describe(model, Options(partial=True), Report())
    layers = {layer.path: layer for layer in described.layers}
    failures = {path: str(error) for path, error in described.failures.items()}
    unknown = {item.path: f"{item.module_class} is not among the classes that qdeq reads" for item in described.unknown}
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        for layer in layers.values():
            _read(layer, found)
        found.unread.update({**failures, **unknown})
        return found
    without_module = _without_module(model, layers)
    for layer in without_module:  # operators and parameters of a graph
        _read(layer, found)
    layers = {path: layer for path, layer in layers.items() if layer not in without_module}
    held = {name for layer in without_module for name in layer.holds}
    done: list[str] = []  # modules that are read with those inside them
    for path, module in model.named_modules():
        if any(path.startswith(owner) for owner in done):
            continue
        if inside := _inside_script(path, module, layers):
            for layer in inside:
                _read(layer, found)
        elif path in layers and any(is_quantized_module(part) for part in module.modules()):
            _read(layers[path], found)
        elif path in failures:
            found.unread[path] = failures[path]
            continue
        elif path in unknown and _holds_something(module):
            found.unread[path] = unknown[path]
            continue
        else:
            found.plain.extend(tensor for tensor in _plain_of(path, module) if tensor.path not in held)
            continue
        done.append(f"{path}." if path else "")
    return found


def _without_module(model: nn.Module, layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers that are operators and parameters of a graph; those of scripts are read with their scripts."""
    classes = {path: class_name(module) for path, module in model.named_modules()}
    scripted = {layer.path for path, module in model.named_modules() for layer in _inside_script(path, module, layers)}
    return [layer for path, layer in layers.items() if path not in scripted and classes.get(path) != layer.source_class]


def _inside_script(path: str, module: nn.Module, layers: Mapping[str, Layer]) -> list[Layer]:
    """The layers of a script, which need not be modules of it."""
    if not isinstance(module, torch.jit.ScriptModule):
        return []
    return [layer for at, layer in layers.items() if at == path or at.startswith(f"{path}.")]


def _holds_something(module: nn.Module) -> bool:
    sources = (True for part in module.modules() for _ in quantized_sources(part))
    return any(sources) or any(True for _ in module.parameters())


def _read(layer: Layer, found: Int8Side) -> None:
    """Take a layer's parts as integers, or as plain tensors where they are not quantized."""
    if layer.made is not None:  # a registered builder has written its module itself
        found.plain.extend(_plain_of(layer.path, layer.made, own=False))
        found.registered.append(layer.path)
        return
    try:
        values = {part.name: [part_value(source) for source in part.sources] for part in layer.parts}
        integers = {name: _integers(layer, name, sources) for name, sources in values.items() if not _is_float(sources)}
    except QdeqError as error:
        found.unread[layer.path] = str(error)
        return
    floats = {name: _together(sources) for name, sources in values.items() if _is_float(sources)}
    if any(_is_half(name, sources) for name, sources in values.items()):
        found.float16.append(layer.path)
    for part, ints in integers.items():
        owner, _, name = part.rpartition(".")
        at = join(layer.path, owner) if owner else layer.path
        if len(ints.shape) < 2 or ints.axis:
            found.plain.append(PlainTensor(at, name, ints.reference()))
            continue
        bias = floats.pop(join(owner, name.replace("weight", "bias")), None)
        bias = None if bias is None else bias.float()
        known = None if layer.output is None else (layer.output.scale, layer.output.zero_point)
        path, output = (at, known) if name == "weight" else (join(at, name), None)
        found.layers.append(IntegerLayer(path, layer.source_class, ints, bias, output, name))
    for part, value in floats.items():
        owner, _, name = part.rpartition(".")
        if not value.is_floating_point():
            continue  # a counter of a batch norm
        found.plain.append(PlainTensor(join(layer.path, owner) if owner else layer.path, name, value))


def _integers(layer: Layer, name: str, values: list[Any]) -> Integers:
    weights = [unpack_source(value, where=join(layer.path, name)) for value in values]
    # A packed Conv1d is stored as a Conv2d of height 1.
    flat = layer.kind in (nn.Conv1d, nn.ConvTranspose1d)
    return stacked([Integers.of(_without_height(weight) if flat else weight) for weight in weights])


def _without_height(weight: QuantizedWeight) -> QuantizedWeight:
    if len(weight.shape) == 3:
        return weight
    return replace(weight, int_repr=weight.int_repr.squeeze(2), shape=(*weight.shape[:2], weight.shape[3]))


def _is_float(values: list[Any]) -> bool:
    return all(isinstance(value, Tensor) and not value.is_quantized for value in values)


def _together(values: list[Tensor]) -> Tensor:
    """Several tensors one below the other; a single one may have no dimension, or be a counter."""
    return values[0].detach() if len(values) == 1 else torch.cat([value.detach() for value in values])


def _is_half(name: str, values: list[Any]) -> bool:
    own = name.rpartition(".")[2]
    return own.startswith("weight") and getattr(values[0], "dtype", None) is torch.float16


def _plain_of(path: str, module: nn.Module, *, own: bool = True) -> Iterator[PlainTensor]:
    """Floating parameters and saved buffers of a module itself (``own``) or of all in it; observers have none."""
    for prefix, part in [("", module)] if own else module.named_modules():
        if type(part).__module__.startswith("torch.ao.quantization"):
            continue
        saved = {name: value for name, value in part._buffers.items() if name not in part._non_persistent_buffers_set}
        for name, value in {**part._parameters, **saved}.items():
            if value is not None and value.is_floating_point():
                yield PlainTensor(join(path, prefix) if prefix else path, name, value.detach())


def _of_state(state: Mapping[str, Any]) -> Int8Side:
    found = Int8Side()
    if not isinstance(state, WeightFile):
        reason = "packed weights in a state_dict: pass the model, or save it and pass the file"
        found.unread.update({name: reason for name, value in state.items() if is_packed_object(value)})
        state = {name: value for name, value in state.items() if name not in found.unread}
    plan = plan_state("int8_model", state)
    named = list(tensors_of("int8_model", plan))
    keys = {name: target.source for name, target in plan.targets.items()}
    found.outputs.update(
        {path: (float(scale), int(zero_point)) for path, (scale, zero_point) in plan.activations.items()}
    )
    biases = {tensor.bias_name for tensor in named if isinstance(tensor.value, QuantizedWeight)}
    for tensor in named:
        if tensor.name in biases:
            continue
        if isinstance(tensor.value, QuantizedWeight):
            at = tensor.path if tensor.parameter == "weight" else tensor.name
            ints, bias = Integers.of(tensor.value), None if tensor.bias is None else tensor.bias.clone()
            found.layers.append(IntegerLayer(at, "", ints, bias, tensor.output, tensor.parameter, tensor.bias_step))
        elif tensor.value.is_floating_point():
            value = tensor.value.detach()
            if _PACKED_KEY.search(keys[tensor.name]) and value.dim() > 1:
                value = value.half()  # torch packs what is no integer in float16, and unpacks it to float32
                found.float16.append(tensor.path)
            found.plain.append(PlainTensor(tensor.path, tensor.parameter, value))
    return found
