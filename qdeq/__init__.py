"""qdeq turns a quantized PyTorch model back into the float model it stands for, bit for bit."""

from qdeq.dequant import dequantize, unpack
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError
from qdeq.ops import build_info, current_kernel, kernels, use_kernel
from qdeq.weight import QuantizedWeight

__all__ = [
    "QdeqError",
    "QdeqTypeError",
    "QdeqValueError",
    "QuantizedWeight",
    "build_info",
    "current_kernel",
    "dequantize",
    "kernels",
    "unpack",
    "use_kernel",
]
