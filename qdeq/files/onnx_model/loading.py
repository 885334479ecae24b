"""An ONNX file to the float form of its graph; values are read when they are asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from qdeq.errors import QdeqValueError, expected
from qdeq.files.onnx_model.external import ExternalData
from qdeq.files.untrusted import refuse
from qdeq.onnx_graphs.convert import FloatModel, to_float
from qdeq.onnx_graphs.order import tensors_in
from qdeq.onnx_graphs.package import parse_model
from qdeq.onnx_graphs.stored import EXTERNAL

__all__ = ["load_float_model"]

_MAX_BYTES = 2**31 - 1  # of a protobuf message


def load_float_model(path: str | os.PathLike[str], mode: str = "drop") -> tuple[FloatModel, ExternalData]:
    """Read a model and rewrite its graph.

    Raises:
        QdeqError: the package onnx is not installed.
        QdeqValueError: the file cannot be read, is no ONNX model, or holds what cannot be rewritten.

    """
    where = os.fspath(path)
    model = parse_model(where, _read(where))
    apart = (tensor for tensor in tensors_in(model.graph) if tensor.data_location == EXTERNAL)
    entries = (entry for tensor in apart for entry in tensor.external_data)
    data = ExternalData(Path(where), (entry.value for entry in entries if entry.key == "location"))
    return to_float(model, where, data, mode), data


def _read(where: str) -> bytes:
    try:
        descriptor = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                refuse(where, "a file", "something else", "Check the path.")
            if facts.st_size > _MAX_BYTES:
                refuse(where, f"at most {_MAX_BYTES} bytes", str(facts.st_size), "Larger models have external data.")
            return file.read()
    except OSError as error:
        if isinstance(error, QdeqValueError):
            raise
        raise QdeqValueError(expected(where, "a readable file", str(error.strerror), "Check the path.")) from error
