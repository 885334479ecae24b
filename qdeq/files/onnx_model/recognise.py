"""Whether a file is an ONNX model; knows the package onnx no more than the rest of qdeq does."""

from __future__ import annotations

import os

__all__ = ["SUFFIX", "looks_like_onnx"]

SUFFIX = ".onnx"
_IR_VERSION = 0x08  # the first field of a ModelProto, a number
_MAX_IR_VERSION = 0x20
# The field that follows: producer_name, _version, domain, model_version, doc_string, graph, opset_import.
_SECOND_FIELDS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def looks_like_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one: by its name, or as every writer begins it, with the version of the format."""
    if os.fspath(path).endswith(SUFFIX):
        return True
    try:
        with open(path, "rb") as file:
            start = file.read(3)
    except OSError:
        return False
    return len(start) == 3 and start[0] == _IR_VERSION and start[1] <= _MAX_IR_VERSION and start[2] in _SECOND_FIELDS
