"""A float model with roundings through torch's exporters to an ONNX graph."""

from __future__ import annotations

import contextlib
import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.utils import _pytree

from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError, expected
from qdeq.onnx_graphs.package import onnx_library
from qdeq.report import Report
from qdeq.weights.checks import describe
from qdeq.words import error_line

__all__ = ["check_inputs", "export"]


def check_inputs(example_inputs: Any) -> tuple[Tensor, ...]:
    """The inputs of a model as a tuple.

    Raises:
        QdeqTypeError: anything but tensors.

    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, tuple | list) or not inputs or not all(isinstance(value, Tensor) for value in inputs):
        remedy = "Pass what the model is called with; anything else than tensors has to be fixed in the model."
        what = "a tensor, or a tuple of tensors"
        raise QdeqTypeError(expected("to_onnx: example_inputs", what, describe(example_inputs), remedy))
    return tuple(inputs)


def export(model: nn.Module, inputs: tuple[Tensor, ...], opset: int, dynamic_batch: bool, report: Report) -> Any:
    """Export a model.

    The exporter that traces comes first: it has one operator for a recurrent layer and for an average over an image,
    which ONNX Runtime fuses, where the one on ``torch.export`` takes them apart, and it takes a tenth of the time. What
    it cannot export goes through the other.

    Args:
        model: in eval mode; it takes ``inputs``.
        inputs: to run it with.
        opset: version of ONNX's operators.
        dynamic_batch: the first dimension of inputs and outputs may have any size.
        report: gets what the trace fixed.

    Returns:
        An ``onnx.ModelProto`` with all values in it.

    Raises:
        QdeqValueError: the model does not run on the inputs, or neither exporter takes it.

    """
    outputs = _run(model, inputs)
    names = _input_names(model, len(inputs)), _output_names(outputs)
    try:
        return _trace(model, inputs, names, opset, dynamic_batch, report)
    except Exception as error:  # noqa: BLE001  # torch's exporters raise anything
        first = error
    try:
        made = _export_program(model, inputs, names, opset, dynamic_batch)
    except Exception as error:
        got = f"{error_line(first)}; and with dynamo=True: {error_line(error)}"
        remedy = "Change the operation that is named, or export qdeq.dequantize_model(model) yourself."
        what = "a model that torch.onnx.export takes in float"
        raise QdeqValueError(expected("to_onnx: model", what, got, remedy)) from error
    report.note("", f"exported with dynamo=True, since tracing gave: {error_line(first)}")
    return made


def _run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        with torch.no_grad():
            outputs = _pytree.tree_leaves(model(*inputs))
    except QdeqError:
        raise
    except Exception as error:
        what, remedy = "inputs that the model runs on", "Pass what the int8 model is called with."
        raise QdeqValueError(expected("to_onnx: example_inputs", what, error_line(error), remedy)) from error
    if not outputs or not all(isinstance(value, Tensor) for value in outputs):
        remedy = "Wrap it in a module that returns tensors alone."
        raise QdeqValueError(expected("to_onnx: model", "one that returns tensors", describe(outputs), remedy))
    return outputs


def _input_names(model: nn.Module, count: int) -> list[str]:
    """The names of forward's arguments."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = ()  # type: ignore[assignment] # of a callable that has no signature
    names = [parameter.name for parameter in parameters if parameter.kind in kinds][:count]
    return names if len(names) == count else [f"input_{number}" for number in range(count)]


def _output_names(outputs: Sequence[Tensor]) -> list[str]:
    return ["output"] if len(outputs) == 1 else [f"output_{number}" for number in range(len(outputs))]


_Names = tuple[list[str], list[str]]


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...], names: _Names, opset: int, dynamic_batch: bool, report: Report
) -> Any:
    axes = {name: {0: "batch"} for name in (*names[0], *names[1])} if dynamic_batch else None
    with _quiet() as seen, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model, inputs, path, dynamo=False, opset_version=opset, input_names=names[0], output_names=names[1],
            dynamic_axes=axes,
        )  # fmt: skip
        made = onnx_library().load(path)
    for place in sorted({place for item in seen if (place := _fixed(item))}):
        report.note("", f"{place} makes numbers of values while it runs: the file has those of the example")
    return made


def _fixed(warning: warnings.WarningMessage) -> str:
    """The line that the tracer warned of; empty for other warnings, and for what torch's own layers check."""
    path = Path(warning.filename)
    ours = issubclass(warning.category, TracerWarning) and not path.is_relative_to(Path(torch.__file__).parent)
    return f"{path.name}:{warning.lineno}" if ours else ""


def _export_program(
    model: nn.Module, inputs: tuple[Tensor, ...], names: _Names, opset: int, dynamic_batch: bool
) -> Any:
    batch = torch.export.Dim("batch") if dynamic_batch else None
    shapes = tuple({0: batch} for _ in inputs) if dynamic_batch else None
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model, inputs, path, dynamo=True, opset_version=max(opset, 18), input_names=names[0],
            output_names=names[1], dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
        return onnx_library().load(path)


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Exporters warn of their own end and of every choice; transformer layers take their plain way through."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True) as seen, torch.no_grad():
            warnings.simplefilter("always")
            yield seen
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)
