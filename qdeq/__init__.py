"""qdeq turns a quantized PyTorch model back into the float model it stands for, bit for bit.

from qdeq import dequantize_model
float_model = dequantize_model(int8_model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qdeq.dequant import dequantize, unpack
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError
from qdeq.ops import build_info, current_kernel, kernels, use_kernel
from qdeq.report import Report, ReportEntry
from qdeq.weight import QuantizedWeight

if TYPE_CHECKING:
    from qdeq.activations import drop_activations
    from qdeq.convert import dequantize_model
    from qdeq.registry import register

__all__ = [
    "QdeqError",
    "QdeqTypeError",
    "QdeqValueError",
    "QuantizedWeight",
    "Report",
    "ReportEntry",
    "build_info",
    "current_kernel",
    "dequantize",
    "dequantize_model",
    "drop_activations",
    "kernels",
    "register",
    "unpack",
    "use_kernel",
]

# Loaded on first use: they need torch.ao, which reading files must not, or packages of an extra.
_LAZY = {
    "dequantize_model": "qdeq.convert",
    "drop_activations": "qdeq.activations",
    "register": "qdeq.registry",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'qdeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
