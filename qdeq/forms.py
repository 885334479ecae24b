"""Recognises the form that a model comes in, and what in it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.packed import is_packed_weight

__all__ = ["holds_quantized_state", "is_quantized_module", "quantized_sources", "unsupported_form"]

_QUANTIZED_NAMESPACES = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
)
_QAT_NAMESPACES = ("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat")
# Float classes that live among the quantized ones.
_FLOAT_AMONG_QUANTIZED = {"FloatFunctional"}
_QUANTIZED_DTYPES = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)


def _in_namespace(module: nn.Module, namespaces: tuple[str, ...]) -> bool:
    return any(
        cls.__module__.startswith(namespaces) and cls.__name__ not in _FLOAT_AMONG_QUANTIZED
        for cls in type(module).__mro__
    )


def quantized_sources(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, object) of the quantized tensors and packed weights that ``module`` itself holds."""
    own: dict[str, Any] = {**module._parameters, **module._buffers, **module.__dict__}
    for name, value in own.items():
        if is_packed_weight(value) or (isinstance(value, Tensor) and value.dtype in _QUANTIZED_DTYPES):
            yield name, value


def holds_quantized_state(module: nn.Module) -> bool:
    """Whether ``module`` itself holds a quantized tensor or a packed weight."""
    return next(quantized_sources(module), None) is not None


def is_quantized_module(module: nn.Module) -> bool:
    """Whether ``module`` is one of torch's quantized modules, a subclass of one, or holds quantized state."""
    return _in_namespace(module, _QUANTIZED_NAMESPACES) or holds_quantized_state(module)


def _is_prepared(module: nn.Module) -> bool:
    from torch.ao.quantization import FakeQuantizeBase, ObserverBase

    return isinstance(module, FakeQuantizeBase | ObserverBase) or _in_namespace(module, _QAT_NAMESPACES)


def unsupported_form(model: nn.Module) -> tuple[str, str] | None:
    """Name the form of a model that is not an eager converted one.

    Returns:
        (what was found, what to do), or None for a form that can be converted.

    """
    if isinstance(model, torch.jit.ScriptModule):
        return "a TorchScript module", "TorchScript is not read yet. Convert the eager model it was made from."
    for path, module in model.named_modules():
        at = f" at {path}" if path else ""
        if isinstance(module, fx.GraphModule) and any(is_quantized_module(child) for child in module.modules()):
            return (
                f"an FX GraphModule{at}",
                "FX graphs are not read yet. Convert the model with eager-mode quantization.",
            )
        if isinstance(module, torch.jit.ScriptModule):
            return f"a TorchScript module{at}", "TorchScript is not read yet. Convert the eager model it was made from."
        if _is_prepared(module):
            return (
                f"a prepared model, not a converted one ({type(module).__name__}{at})",
                "Call torch.ao.quantization.convert on it first, or use its float weights as they are.",
            )
    return None
