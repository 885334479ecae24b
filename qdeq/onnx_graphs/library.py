"""The package onnx, which only this room needs: loaded when an ONNX model is met, and not before."""

from __future__ import annotations

import importlib
from typing import Any

from qdeq.errors import QdeqError, expected, refuse
from qdeq.words import clip, error_line

__all__ = ["onnx_library", "parse_model", "shown"]


def onnx_library() -> Any:
    """The package onnx.

    Raises:
        QdeqError: it is not installed.

    """
    try:
        return importlib.import_module("onnx")
    except ImportError as error:
        remedy = "Install it: pip install 'qdeq[onnx]'."
        raise QdeqError(expected("onnx", "the package onnx", error_line(error), remedy)) from error


def parse_model(where: str, data: bytes) -> Any:
    """A ModelProto out of its bytes; ``where`` is the file.

    Raises:
        QdeqValueError: the bytes are no ONNX model.

    """
    onnx = onnx_library()
    model = onnx.ModelProto()
    remedy = "The file is damaged, or no ONNX model: get a fresh copy."
    try:
        model.ParseFromString(data)
    except Exception as error:  # noqa: BLE001  # protobuf's own class of error differs between its versions
        refuse(where, "an ONNX model", error_line(error), remedy)
    if not model.HasField("graph") or not model.opset_import:
        refuse(where, "an ONNX model with a graph and its opsets", "one without", remedy)
    return model


def shown(name: object) -> str:
    """A name out of a file, for a message: no control characters, never longer than a line."""
    return clip(repr(name).encode("ascii", "backslashreplace").decode(), 100, "...")
