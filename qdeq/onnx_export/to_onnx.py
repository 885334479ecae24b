"""``to_onnx``: an int8 torch model in, a file that ONNX Runtime runs in int8 out, with the very same integers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected, refuse
from qdeq.files.new_files import NewFiles
from qdeq.onnx_export.biases import quantize_biases
from qdeq.onnx_export.clamps import clamp_integers
from qdeq.onnx_export.fold import Folded, fold
from qdeq.onnx_export.graph import Graph
from qdeq.onnx_export.integers import Integers, integers_of, recurrent_weights
from qdeq.onnx_export.roundings import make_plain, repeat_behind_movers
from qdeq.onnx_export.tracing import check_inputs, export
from qdeq.onnx_graphs.package import onnx_library
from qdeq.rebuild import dequantize_model
from qdeq.report import Report
from qdeq.sources import form_of
from qdeq.sources.form import Options
from qdeq.weights.checks import describe
from qdeq.words import error_line

__all__ = ["FLOAT_NOTE", "OPSETS", "to_onnx"]

FLOAT_NOTE = "float in the file"
"""How notes begin that name a weight whose integers the file does not have."""

OPSETS = range(13, 22)
"""Versions of ONNX's operators that are written: from 13 on scales can lie along an axis."""


def to_onnx(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset: int = 17,
    dynamic_batch: bool = False,
    float_biases: bool = False,
    force: bool = False,
) -> Report:
    """Write a quantized model as ONNX: QuantizeLinear and DequantizeLinear, with the model's own integers.

    Every weight that the model holds as integers is an initializer of the same integers, scales and zero points behind
    a DequantizeLinear; values are rounded to the scales and zero points of the model's layers. The nodes lie as ONNX
    Runtime's fusion looks for them, so that it runs convolutions, linear layers and additions in int8. Layers that
    quantize their input anew at every call (``quantize_dynamic``) have integer weights and float inputs.

    torch exports the float form of the model, so the model has to be one that ``torch.onnx.export`` takes in float. As
    there, what its Python code decides by the inputs is decided by the example; the report says where.

    Args:
        model: a converted model in eager mode, an FX graph, a TorchScript module or the file of one: what
            :func:`qdeq.dequantize_model` takes. It is not changed.
        example_inputs: a tensor or a tuple of them, which the float model is run with once.
        path: the file to write.
        opset: version of ONNX's operators, 13 to 21.
        dynamic_batch: the first dimension of every input and output may have any size; else the sizes of the example
            are those of the file.
        float_biases: keep biases as the float numbers that they are. By default those of layers on rounded inputs are
            int32 on the grid of their sums, at most half of such a step away, as integer layers want them.
        force: replace ``path`` if it is there.

    Returns:
        What went where. An entry of a weight has the name of its integers in the file as ``target``; ``notes`` name
        every weight that the file has as floats, and why, and every rounding that ONNX does otherwise in a tie;
        ``uncovered`` what is not rounded in the file and is in the model.

    Raises:
        QdeqTypeError: ``model`` is nothing that comes quantized, or the inputs are no tensors.
        QdeqValueError: as :func:`qdeq.dequantize_model`; the model does not run on the inputs; neither of torch's
            exporters takes it; a file is in the way. Nothing was written.
        QdeqError: the package onnx is not installed, or the file cannot be written.

    """
    onnx_library()
    inputs, out = check_inputs(example_inputs), _check_path(path)
    if opset not in OPSETS:
        what = f"a version from {OPSETS[0]} to {OPSETS[-1]}"
        refuse("to_onnx: opset", what, repr(opset), "ONNX Runtime runs models of any of them.")
    NewFiles([out], force=force, size=0).check()
    source: Any = model  # a path, too, though dequantize_model's own signature says a module
    rebuilt, report = dequantize_model(source, activations="fake_quant", return_report=True)
    found, refused = integers_of(_layers(model), report)
    if not found and not refused:
        remedy = "Convert a prepared model first; a float one is exported by torch.onnx.export."
        refuse("to_onnx: model", "a model with integer weights", "one without", remedy)
    make_plain(rebuilt, report)
    graph = Graph(export(rebuilt.eval(), inputs, opset, dynamic_batch, report))
    folded = fold(graph, found, recurrent_weights(rebuilt, found))
    clamp_integers(graph)
    repeat_behind_movers(graph)
    if not float_biases and (count := quantize_biases(graph)):
        report.note("", f"{count} biases are int32 on the grid of the sums, half a step away at most")
    data = _checked(graph.finish())
    _account(report, found, refused, folded)
    with NewFiles([out], force=force, size=len(data)) as new:
        new.write(out, data, 0)
        new.commit()
    return report


def _check_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        remedy = 'Pass a name such as "model.onnx".'
        raise QdeqTypeError(expected("to_onnx: path", "the file to write", describe(path), remedy))
    return Path(path)


def _layers(model: Any) -> list[Any]:
    """The layers of a model that was rebuilt, with their integers."""
    form = form_of(model)
    assert form is not None  # it was rebuilt
    return form.describe(model, Options(), Report()).layers


def _checked(model: Any) -> bytes:
    """The bytes of a model that ONNX's own checker and shape inference take."""
    onnx = onnx_library()
    try:
        data: bytes = model.SerializeToString()
    except Exception as error:
        what, remedy = "a model that fits into 2 GiB", "Split the model."
        raise QdeqValueError(expected("to_onnx: model", what, error_line(error), remedy)) from error
    try:
        onnx.checker.check_model(data, full_check=True)
    except Exception as error:  # the checker's errors and those of shape inference have no class in common
        what, remedy = "a graph that ONNX's checker takes", "Try another opset, or report this model."
        raise QdeqValueError(expected("to_onnx: model", what, error_line(error), remedy)) from error
    return data


def _account(report: Report, found: dict[str, Integers], refused: dict[str, str], folded: dict[str, Folded]) -> None:
    """Name the integers in the file that each weight became, and the weights that stay float."""
    for at, entry in enumerate(report.entries):
        if entry.target in folded:
            place = folded[entry.target]
            note = "; ".join(text for text in (entry.note, place.change) if text)
            report.entries[at] = replace(entry, target=place.name, target_class="onnx initializer", note=note)
    for target in found.keys() - folded.keys():
        refused[target] = "torch's exporter computed with its values, or its scale is no float32"
    for target, why in sorted(refused.items()):
        report.note(target, f"{FLOAT_NOTE}: {why}")
