"""qdeq turns a quantized PyTorch model back into the float model it stands for, bit for bit.

from qdeq import dequantize_model
float_model = dequantize_model(int8_model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError

if TYPE_CHECKING:
    from qdeq.diagnosis.compare import compare
    from qdeq.diagnosis.explain import explain
    from qdeq.diagnosis.say.explanation import Explanation
    from qdeq.files import open
    from qdeq.files.onnx_model.writing import dequantize_onnx
    from qdeq.files.released.converting import dequantize_checkpoint
    from qdeq.files.safetensors.writing import save_safetensors
    from qdeq.grids import drop_activations
    from qdeq.onnx_export.to_onnx import to_onnx
    from qdeq.rebuild import dequantize_model
    from qdeq.report import Report, ReportEntry
    from qdeq.sources.eager.mappings import register
    from qdeq.state_dicts.to_float import dequantize_state_dict
    from qdeq.weights.block_weight import BlockWeight
    from qdeq.weights.dequant import dequantize, unpack
    from qdeq.weights.native import build_info, current_kernel, kernels, use_kernel
    from qdeq.weights.weight import QuantizedWeight

__all__ = [
    "BlockWeight",
    "Explanation",
    "QdeqError",
    "QdeqTypeError",
    "QdeqValueError",
    "QuantizedWeight",
    "Report",
    "ReportEntry",
    "build_info",
    "compare",
    "current_kernel",
    "dequantize",
    "dequantize_checkpoint",
    "dequantize_model",
    "dequantize_onnx",
    "dequantize_state_dict",
    "drop_activations",
    "explain",
    "kernels",
    "open",
    "register",
    "save_safetensors",
    "to_onnx",
    "unpack",
    "use_kernel",
]

# Loaded on first use: torch takes seconds to import, which the help of the command line does not need; some need
# torch.ao, which reading files must not, or packages of an extra.
_LAZY = {
    "BlockWeight": "qdeq.weights.block_weight",
    "Explanation": "qdeq.diagnosis.say.explanation",
    "QuantizedWeight": "qdeq.weights.weight",
    "Report": "qdeq.report",
    "ReportEntry": "qdeq.report",
    "build_info": "qdeq.weights.native",
    "compare": "qdeq.diagnosis.compare",
    "current_kernel": "qdeq.weights.native",
    "dequantize": "qdeq.weights.dequant",
    "dequantize_checkpoint": "qdeq.files.released.converting",
    "dequantize_model": "qdeq.rebuild",
    "dequantize_onnx": "qdeq.files.onnx_model.writing",
    "dequantize_state_dict": "qdeq.state_dicts.to_float",
    "drop_activations": "qdeq.grids",
    "explain": "qdeq.diagnosis.explain",
    "kernels": "qdeq.weights.native",
    "open": "qdeq.files",
    "register": "qdeq.sources.eager.mappings",
    "save_safetensors": "qdeq.files.safetensors.writing",
    "to_onnx": "qdeq.onnx_export.to_onnx",
    "unpack": "qdeq.weights.dequant",
    "use_kernel": "qdeq.weights.native",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return value
    raise AttributeError(f"module 'qdeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
