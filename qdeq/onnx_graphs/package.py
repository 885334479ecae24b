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
    _check_text(where, model)
    return model


def _check_text(where: str, message: Any) -> None:
    """Refuse names that are no text: protobuf hands them out as bytes."""
    for field, value in message.ListFields():
        repeated = hasattr(value, "append") or hasattr(value, "add")
        if field.message_type is not None:
            for inner in value if repeated else (value,):
                _check_text(where, inner)
        elif field.type == field.TYPE_STRING:
            for text in value if repeated else (value,):
                if not isinstance(text, str):
                    refuse(where, f"text as {field.name}", shown(text), "The file is damaged: get a fresh copy.")


def shown(name: object) -> str:
    """A name out of a file, for a message: no control characters, never longer than a line."""
    return clip(repr(name).encode("ascii", "backslashreplace").decode(), 100, "...")
