"""Reads the int8 side of a diagnosis: every quantized weight, what is not quantized, and what cannot be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.sides.integers import Int8Side, IntegerLayer, Integers, PlainTensor, stacked
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqError
from qdeq.sources.eager.build import Build
from qdeq.sources.eager.recognise import is_packed_object, is_quantized_module, quantized_sources
from qdeq.sources.eager.registry import find_builder
from qdeq.state_dicts.named import named_tensors
from qdeq.state_dicts.weight_file import WeightFile
from qdeq.weights.dequant import unpack_source
from qdeq.weights.packed import packed_bias
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import class_name, join

__all__ = ["read_int8_side"]


def read_int8_side(side: Side) -> Int8Side:
    """Read a model or a state_dict."""
    return _of_state(side.state or {}) if side.model is None else _of_model(side.model)


def _of_model(model: nn.Module) -> Int8Side:
    found = Int8Side()
    whole: list[str] = []  # modules of several weights, whose inner modules are read with them
    for path, module in model.named_modules():
        if any(path.startswith(owner) for owner in whole):
            continue
        if not _is_quantized(module):
            found.plain.extend(_plain_of(path, module))
            continue
        sources = [value for part in module.modules() for _, value in quantized_sources(part)]
        if callable(getattr(module, "weight", None)) and len(sources) == 1 and not _is_half(module):
            found.layers.append(_layer(path, module, sources[0]))
        else:
            _read_whole(path, module, found)
        if path not in found.unread:
            whole.append(f"{path}." if path else "")
    return found


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module is quantized, or is rebuilt as one with the quantized modules in it."""
    if is_quantized_module(module):
        return True
    return find_builder(type(module)) is not None and any(is_quantized_module(part) for part in module.modules())


def _is_half(module: nn.Module) -> bool:
    return torch.float16 in (getattr(module, "dtype", None), getattr(module, "weight_dtype", None)) or any(
        getattr(part, "dtype", None) is torch.float16 for part in module.children()
    )


def _layer(path: str, module: Any, source: object) -> IntegerLayer:
    scale, zero_point = getattr(module, "scale", None), getattr(module, "zero_point", None)
    return IntegerLayer(
        path=path,
        class_name=class_name(module),
        ints=_read(source, path, module),
        bias=packed_bias(source) if isinstance(source, torch.ScriptObject) else None,
        output=None if scale is None or zero_point is None else (float(scale), int(zero_point)),
    )


def _read(source: object, path: str, module: nn.Module | None = None) -> Integers:
    weight = unpack_source(source, where=join(path, "weight"))
    # A packed Conv1d is stored as a Conv2d of height 1.
    if module is not None and "1d" in type(module).__name__ and len(weight.shape) == 4:
        weight = replace(weight, int_repr=weight.int_repr.squeeze(2), shape=(*weight.shape[:2], weight.shape[3]))
    return Integers.of(weight)


class _Recorder(Build):
    """A build that writes nothing: it keeps which sources become which float parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[tuple[str, str], list[Any]] = {}

    def stack(
        self, parts: Sequence[tuple[str, Any]], module: nn.Module, path: str, target: nn.Module, name: str
    ) -> None:
        """Keep the sources of a parameter."""
        del module, target
        self.parts[path, name] = [source for _, source in parts]


def _read_whole(path: str, module: nn.Module, found: Int8Side) -> None:
    """Read a module through its builder: RNNs, attention, norms, float16 weights, classes of one's own."""
    holds_something = any(True for _ in module.parameters()) or any(
        True for part in module.modules() for _ in quantized_sources(part)
    )
    builder, recorder = find_builder(type(module)), _Recorder()
    if builder is None:
        if holds_something:
            found.unread[path] = f"{class_name(module)} is not among the classes that qdeq reads"
        return
    try:
        built = builder(module, path, recorder)
    except QdeqError as error:
        found.unread[path] = str(error)
        return
    if not recorder.parts and isinstance(built, nn.Module):  # a registered builder writes its module itself
        found.plain.extend(_plain_of(path, built, own=False))
        return
    floats = {
        place: torch.cat([source.detach().float() for source in sources])
        for place, sources in recorder.parts.items()
        if _is_float(sources)
    }
    if any(
        name.startswith("weight") and getattr(sources[0], "dtype", None) is torch.float16
        for (_, name), sources in recorder.parts.items()
    ):
        found.float16.append(path)
    for (owner, name), sources in recorder.parts.items():
        if _is_float(sources):
            continue
        ints = [Integers.of(unpack_source(source, where=join(owner, name))) for source in sources]
        if len(ints[0].shape) < 2 or any(part.axis for part in ints):
            found.plain.append(PlainTensor(owner, name, torch.cat([part.reference() for part in ints])))
            continue
        bias = floats.pop((owner, name.replace("weight", "bias")), None)
        at = owner if name == "weight" else join(owner, name)
        found.layers.append(IntegerLayer(at, class_name(module), stacked(ints), bias, parameter=name))
    found.plain.extend(PlainTensor(owner, name, value) for (owner, name), value in floats.items())


def _is_float(sources: list[Any]) -> bool:
    return all(isinstance(source, Tensor) and not source.is_quantized for source in sources)


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
    named = list(named_tensors("int8_model", state))
    biases = {tensor.bias_name for tensor in named if isinstance(tensor.value, QuantizedWeight)}
    for tensor in named:
        if isinstance(tensor.value, QuantizedWeight):
            at = tensor.path if tensor.parameter == "weight" else tensor.name
            ints, bias = Integers.of(tensor.value), None if tensor.bias is None else tensor.bias.clone()
            found.layers.append(IntegerLayer(at, "", ints, bias, tensor.output, tensor.parameter))
        elif tensor.value.is_floating_point() and tensor.name not in biases:
            found.plain.append(PlainTensor(tensor.path, tensor.parameter, tensor.value.detach()))
    return found
