"""Recognises the form that a model comes in, and what in it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from qdeq.tree.walk import HOLDS_NOTHING, MODULE_INTERNALS, every_module, own_tensors
from qdeq.weights.packed import is_packed_weight

__all__ = [
    "holds_quantized_state",
    "is_observing",
    "is_packed_object",
    "is_quantized_module",
    "quantized_sources",
    "unsupported_form",
]

_QUANTIZED_NAMESPACES = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
_QAT_NAMESPACES = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat")
# Float classes that live among the quantized ones.
_FLOAT_AMONG_QUANTIZED = {FloatFunctional}
# Packed weights of cells and sparse layers, which only their builders know how to open.
_PACKED_CLASSES = ("torch.classes.rnn.", "torch.classes.sparse.", "torch.classes.quantized.")


def _in_namespace(kind: type, namespaces: tuple[str, ...]) -> bool:
    return any(cls.__module__.startswith(namespaces) and cls not in _FLOAT_AMONG_QUANTIZED for cls in kind.__mro__)


def is_packed_object(value: Any) -> bool:
    """Whether ``value`` is a TorchScript object that holds packed weights, of whatever kind."""
    if is_packed_weight(value):
        return True
    if not isinstance(value, torch.ScriptObject):
        return False
    return any(name in value._type().qualified_name() for name in _PACKED_CLASSES)


def quantized_sources(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of the quantized tensors and packed weights that ``module`` itself holds."""
    own = module.__dict__
    extra = own.keys() - MODULE_INTERNALS
    plain = [(name, own[name]) for name in own if name in extra] if extra else []
    for name, value in [*own_tensors(module), *plain]:
        if type(value) in HOLDS_NOTHING:
            continue
        if is_packed_object(value) or (isinstance(value, Tensor) and value.is_quantized):
            yield name, value


def holds_quantized_state(module: nn.Module) -> bool:
    """Whether ``module`` itself holds a quantized tensor or a packed weight."""
    return next(quantized_sources(module), None) is not None


def is_quantized_module(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's quantized modules, a subclass of one, or holds quantized state."""
    return _in_namespace(type(module), _QUANTIZED_NAMESPACES) or holds_quantized_state(module)


def is_observing(module: object) -> bool:
    """Whether a module is an observer or a fake quantization."""
    return isinstance(module, ObserverBase | FakeQuantizeBase)


def _unsupported(module: nn.Module) -> str:
    """Which form a module shows the model to be in: "graph" (perhaps), "prepared" or none."""
    if isinstance(module, fx.GraphModule):
        return "graph"
    prepared = is_observing(module) or _in_namespace(type(module), _QAT_NAMESPACES)
    return "prepared" if prepared else ""


def _holds_quantized_modules(model: nn.Module) -> bool:
    return any(is_quantized_module(module) for _, module in every_module(model))


def unsupported_form(model: nn.Module) -> tuple[str, str] | None:
    """Name the form of a model that is not an eager converted one.

    Returns:
        (what was found, what to do), or None for a form that can be converted.

    """
    prepared = []
    for path, module in every_module(model):
        form = _unsupported(module)
        if not form:
            continue
        at = f" at {path}" if path else ""
        if form == "graph" and _holds_quantized_modules(module):
            return (
                f"an FX GraphModule{at}",
                "FX graphs are not read yet. Convert the model with eager-mode quantization.",
            )
        if form == "prepared":
            prepared.append(f"{type(module).__name__}{at}")
    if prepared:
        half = "a half converted model" if _holds_quantized_modules(model) else "a prepared model"
        return (
            f"{half}, not a converted one ({', '.join(prepared)})",
            "Call torch.ao.quantization.convert on it first, or use its float weights as they are.",
        )
    return None
