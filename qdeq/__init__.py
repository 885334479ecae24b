"""qdeq turns a quantized PyTorch model back into the float model it stands for, bit for bit."""

from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError

__all__ = ["QdeqError", "QdeqTypeError", "QdeqValueError"]
