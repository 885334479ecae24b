"""``dequantize_onnx``: an int8 ONNX model to the float one, in memory or written as it is computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch

from qdeq.errors import QdeqTypeError, QdeqValueError, expected, refuse
from qdeq.files.new_files import NewFiles
from qdeq.files.onnx_model.external import ExternalData, no_folder
from qdeq.files.onnx_model.loading import load_float_model
from qdeq.files.streaming import Piece, stream
from qdeq.onnx_graphs.convert import MODES, FloatModel, to_float
from qdeq.onnx_graphs.order import tensors_in
from qdeq.onnx_graphs.package import onnx_library
from qdeq.onnx_graphs.stored import EXTERNAL, stored
from qdeq.report import Report
from qdeq.weights.checks import describe
from qdeq.words import error_line

__all__ = ["dequantize_onnx"]

EMBEDDED_BYTES = 1 << 30
"""Weights of more bytes than this lie beside the model: a protobuf message has at most 2 GiB."""
SMALL_BYTES = 1024
"""Tensors below this stay in the model: scales, shapes and the like."""
_ALIGNED = 4096  # so that a reader can map each tensor
_RELEASE_BYTES = 32 << 20
Source = str | os.PathLike[str] | Any


@overload
def dequantize_onnx(
    model: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    activations: str = "drop",
    force: bool = False,
    return_report: Literal[False] = False,
) -> Any: ...


@overload
def dequantize_onnx(
    model: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    activations: str = "drop",
    force: bool = False,
    return_report: Literal[True],
) -> tuple[Any, Report]: ...


def dequantize_onnx(
    model: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    activations: str = "drop",
    force: bool = False,
    return_report: bool = False,
) -> Any:
    """Turn a quantized ONNX model back into the float one that it stands for.

    Every weight has the bits that ONNX Runtime's own DequantizeLinear gives, ``(q - zero_point) * scale`` in float32
    (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html). No quantized operator is left.

    A Relu or a Clip(0, 6) that onnxruntime.quantization took away, because the range of the quantized output cuts off
    the same values, comes back; the report names each. Any other upper bound cannot be told from one that calibration
    found: ``activations="clamp"`` keeps all of them.

    Args:
        model: path of an ``.onnx`` file, with external data beside it if it has any, or an ``onnx.ModelProto``; neither
            is changed.
        out: the file to write. Weights of more than 1 GiB together, or any where the source has external data, go to
            ``<out>.data`` beside it, a few blocks of 8 MB in memory at a time. Both appear when they are complete.
        activations: ``"drop"``: values are not rounded. ``"clamp"``: not rounded, but kept in the range of their
            integers. ``"fake_quant"``: activations keep QuantizeLinear and DequantizeLinear, only weights become float.
        force: replace ``out`` if it is there.
        return_report: give the report, too.

    Returns:
        The float ``onnx.ModelProto``, and the report if it was asked for. With ``out``, large weights of it lie in the
        file that was written.

    Raises:
        QdeqTypeError: ``model`` is neither a path nor a ModelProto.
        QdeqValueError: nothing in it is quantized; an operator on quantized values that is not known; scales or zero
            points that are computed, contradict one another or do not fit; a damaged file, or external data outside of
            its folder. The message names file, node and tensor, and nothing was written.
        QdeqError: the package onnx is not installed, or ``out`` cannot be written.

    """
    if activations not in MODES:
        what = f"one of {', '.join(MODES)}"
        refuse("dequantize_onnx: activations", what, repr(activations), 'Pass "drop" for the float model alone.')
    target = None if out is None else Path(out)
    if isinstance(model, str | os.PathLike):
        converted, data = load_float_model(model, activations)
    else:
        converted, data = _from_memory(model, activations), None
    if not converted.quantized:
        refuse(converted.where, "a model with something quantized", "one without", "It is float already.")
    if target is None:
        _fill(converted)
    else:
        _write(converted, data, target, force)
    return (converted.model, converted.report) if return_report else converted.model


def _from_memory(model: Any, activations: str) -> FloatModel:
    if not isinstance(model, onnx_library().ModelProto):
        what, remedy = "a path or an onnx.ModelProto", "For a torch model see qdeq.dequantize_model."
        raise QdeqTypeError(expected("dequantize_onnx: model", what, describe(model), remedy))
    return to_float(model, "model", no_folder, activations)


def _fill(converted: FloatModel) -> None:
    """Put all weights into the model itself."""
    total = sum(weight.bytes for weight in converted.weights.values())
    if total > EMBEDDED_BYTES:
        remedy = "Pass out=, and they are written beside the model."
        refuse(converted.where, f"at most {EMBEDDED_BYTES} bytes of float weights in memory", str(total), remedy)
    for item in _tensors(converted, everything=True):
        tensor = converted.model.graph.initializer.add() if item.is_new else item.tensor
        tensor.CopyFrom(item.tensor)
        _embed(tensor, item)


@dataclass(frozen=True, eq=False)
class _Item:
    """A tensor whose values are to be written: where they come from."""

    tensor: Any
    is_new: bool
    size: int
    parts: Any  # gives pairs of a number of values and a function that fills as many

    def all_bytes(self) -> bytes:
        """The values, at once."""
        out, at = torch.empty(self.size, dtype=torch.uint8), 0
        for size, fill in self.parts():
            fill(out[at : at + size])
            at += size
        return bytes(out.numpy().tobytes())


def _embed(tensor: Any, item: _Item) -> None:
    data = item.all_bytes()
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    tensor.raw_data = data


def _tensors(converted: FloatModel, *, everything: bool = False) -> Iterator[_Item]:
    """What has no values in the model yet: float weights, and tensors of the source in other files."""
    for tensor in tensors_in(converted.model.graph):
        if tensor.data_location == EXTERNAL:
            yield _copied(converted, tensor)
    for weight in converted.weights.values():
        size = weight.dtype.itemsize

        def parts(weight: Any = weight, size: int = size) -> Iterator[tuple[int, Any]]:
            for count, fill in weight.parts():
                yield count * size, lambda out, fill=fill: fill(out.view(weight.dtype))

        yield _Item(converted.tensor(weight), True, weight.bytes, parts)


def _copied(converted: FloatModel, tensor: Any) -> _Item:
    source = onnx_library().TensorProto()
    source.CopyFrom(tensor)  # the tensor itself will say where its values are written to
    found = stored(source, converted.where, converted.external)

    def parts() -> Iterator[tuple[int, Any]]:
        data = found.data()
        for start in range(0, found.bytes, _RELEASE_BYTES // 4):
            part = data[start : start + _RELEASE_BYTES // 4]
            yield part.numel(), lambda out, part=part: out.copy_(part)

    return _Item(tensor, False, found.bytes, parts)


def _write(converted: FloatModel, data: ExternalData | None, out: Path, force: bool) -> None:
    """Write the model, and its large weights beside it."""
    beside = out.with_name(f"{out.name}.data")
    items = list(_tensors(converted))
    total = sum(item.size for item in items)
    apart = total > EMBEDDED_BYTES or (data is not None and bool(data.files))
    large = [item for item in items if apart and item.size >= SMALL_BYTES]
    _refuse_sources(converted, data, (out, beside))
    graph = converted.model.graph
    for item in items:
        if item not in large:
            tensor = graph.initializer.add() if item.is_new else item.tensor
            tensor.CopyFrom(item.tensor)
            _embed(tensor, item)
    places, end = [], 0
    for item in large:
        tensor = graph.initializer.add() if item.is_new else item.tensor
        tensor.CopyFrom(item.tensor)
        end = -(-end // _ALIGNED) * _ALIGNED
        _refer(tensor, beside.name, end, item.size)
        places.append(end)
        end += item.size
    text = _serialized(converted)
    files = [beside, out] if large else [out]
    replaced = [] if large else [beside]
    with NewFiles(files, force=force, size=end + len(text), replaced=replaced) as new:
        if large:
            pieces = _pieces(large, places, new.descriptor(beside))
            since = 0

            def written(piece: Piece) -> None:
                nonlocal since
                since += piece.size
                if data is not None and since >= _RELEASE_BYTES:
                    data.release()
                    since = 0

            with new.naming_errors(beside):
                stream(pieces, written)
        new.write(out, text, 0)
        new.commit()


def _pieces(items: list[_Item], places: list[int], file: int) -> Iterator[Piece]:
    for item, offset in zip(items, places, strict=True):
        at = offset
        for size, fill in item.parts():
            yield Piece(file, at, size, fill, item.tensor.name)
            at += size


def _refer(tensor: Any, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def _serialized(converted: FloatModel) -> bytes:
    try:
        return bytes(converted.model.SerializeToString())
    except Exception as error:  # noqa: BLE001  # protobuf's own class of error differs between its versions
        remedy = "Store the model with external data first."
        refuse(converted.where, "a model that fits into 2 GiB", error_line(error), remedy)


def _refuse_sources(converted: FloatModel, data: ExternalData | None, targets: tuple[Path, ...]) -> None:
    """Not even with force: the source is what a mistake could be undone with."""
    sources = () if data is None else (data.model, *data.files)
    for target in targets:
        if target.exists() and any(source.exists() and target.samefile(source) for source in sources):
            got = f"{target}, a file of the source"
            raise QdeqValueError(expected("dequantize_onnx: out", "another file", got, "Choose another name."))
