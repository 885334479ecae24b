"""An ONNX model as a mapping from names to weights: what its quantized initializers stand for, and its float ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.files.onnx_model.external import ExternalData
from qdeq.files.onnx_model.loading import load_float_model
from qdeq.files.untrusted import refuse, shown
from qdeq.onnx_graphs.convert import FloatModel
from qdeq.onnx_graphs.parameters import Parameter, parameters
from qdeq.onnx_graphs.stored import TYPES, Stored, stored
from qdeq.onnx_graphs.weights import FloatWeight
from qdeq.state_dicts.weight_file import Entry, WeightFile
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import dtype_name

__all__ = ["OnnxFile", "open_onnx"]

_NUMBERS_OF_THE_GRAPH = "no weight: integers or strings that the graph computes with, such as a shape"


class OnnxFile(WeightFile):
    """The initializers of an ONNX model. The format has no checksums.

    Quantized ones are :class:`qdeq.QuantizedWeight` where one scale holds for all or for each channel, under the name
    of the float initializer that they stand for; with scales for blocks, of 8-bit floats, or in another order than the
    float operator has them, they are float tensors.
    """

    kind = "onnx"

    def __init__(self, path: str, model: FloatModel, data: ExternalData) -> None:
        """Made by :func:`open_onnx`."""
        self._data: ExternalData | None = data
        self._files = (Path(path), *data.files)
        self._parameters = parameters(model.model.graph, {name: len(w.shape) for name, w in model.weights.items()})
        plain = {tensor.name: tensor for tensor in model.model.graph.initializer}
        held = {name: tensor for name, tensor in plain.items() if _is_float(tensor.data_type)}
        self._items: dict[str, FloatWeight | Stored] = dict(model.weights)
        self._items |= {name: stored(tensor, path, data) for name, tensor in held.items()}
        super().__init__(path, dict.fromkeys(self._items))
        self.dropped |= dict.fromkeys(plain.keys() - held.keys(), _NUMBERS_OF_THE_GRAPH)
        self.dropped |= {item.source: item.reason for item in model.report.dropped}
        self.activation_qparams |= model.report.activation_qparams
        if not self._items:
            refuse(path, "at least one weight", "a model without initializers", "Check that it is the right file.")

    def __getitem__(self, name: str) -> QuantizedWeight | Tensor:
        if name not in self._items:
            raise KeyError(name)
        if self._data is None:
            remedy = "Open it again."
            raise QdeqValueError(expected(f"{self.path}: {shown(name)}", "an open file", "a closed one", remedy))
        return self._items[name].read()

    def by_parameter(self) -> dict[str, QuantizedWeight | Tensor]:
        """Weights and biases of layers by the modules that torch's exporter named their nodes after, as torch has them.

        Where it named none, ``X`` becomes ``X.weight``. All others keep their names.
        """
        found: dict[str, QuantizedWeight | Tensor] = {}
        for name, value in self.items():
            parameter = self._parameters.get(name, Parameter(name))
            found[parameter.name] = _transposed(value) if parameter.transposed else value
        return found

    @property
    def files(self) -> tuple[Path, ...]:
        """The model and the files with its external data, as far as they were read."""
        return self._files if self._data is None else (self._files[0], *self._data.files)

    def close(self) -> None:
        """Let go of the files; tensors that were read stay valid."""
        self._files, self._data = self.files, None

    def release(self) -> None:
        """Let the system take back the memory of what was read of external data."""
        if self._data is not None:
            self._data.release()

    def entry(self, name: str) -> Entry:
        """Describe one weight: reads its scales, not its values."""
        item = self._items[name]
        if isinstance(item, Stored):
            kind = dtype_name(TYPES[item.code].storage)
            return Entry(name, item.shape, kind, None, None, None, None, item.bytes, name)
        if item.integers is None:
            note = f"{item.source_dtype}, {item.note}".removesuffix(", ")
            kind = dtype_name(item.dtype)
            return Entry(name, item.shape, kind, None, None, None, None, item.source_bytes, item.source, note)
        low, high = (float(item.scale.min()), float(item.scale.max())) if item.scale.numel() else (None, None)
        facts = (item.kernel_dtype, item.qscheme, item.axis, low, high, item.source_bytes, item.source, item.note)
        return Entry(name, item.shape, *facts)


def _transposed(value: QuantizedWeight | Tensor) -> QuantizedWeight | Tensor:
    if isinstance(value, Tensor):
        return value.t()
    if value.integers.bits < 8:
        return value.dequantize(allow_bad_scales=True).t()
    axis = None if value.axis is None else 1 - value.axis
    return replace(value, int_repr=value.int_repr.t(), axis=axis, shape=value.shape[::-1])


def _is_float(code: int) -> bool:
    return code in TYPES and TYPES[code].storage.is_floating_point


def open_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Open the weights of an ONNX model.

    Raises:
        QdeqError: the package onnx is not installed.
        QdeqValueError: the file cannot be read, is no ONNX model, or its graph cannot be followed.

    """
    model, data = load_float_model(path)
    return OnnxFile(os.fspath(path), model, data)
