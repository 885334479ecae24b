"""``to_onnx``: an int8 torch model in, a file that ONNX Runtime runs in int8 out, with the very same integers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected, refuse
from qdeq.files.new_files import NewFiles
from qdeq.onnx_export.biases import quantize_biases
from qdeq.onnx_export.clamps import clamp_integers
from qdeq.onnx_export.fold import Folded, fold
from qdeq.onnx_export.graph import Graph
from qdeq.onnx_export.integers import Integers, integers_of, recurrent_weights
from qdeq.onnx_export.roundings import make_plain, repeat_behind_movers
from qdeq.onnx_export.tracing import check_inputs, export
from qdeq.onnx_graphs.library import onnx_library
from qdeq.rebuild import dequantize_model
from qdeq.report import Report
from qdeq.sources import form_of
from qdeq.sources.form import Options
from qdeq.words import error_line

__all__ = ["to_onnx"]

OPSETS = range(13, 22)
_MAX_BYTES = 2**31 - 1  # of a protobuf message


def to_onnx(
    model: nn.Module | str | os.PathLike[str],
    example_inputs: Tensor | tuple[Tensor, ...],
    path: str | os.PathLike[str],
    *,
    opset: int = 17,
    dynamic_batch: bool = False,
    force: bool = False,
) -> Report:
    """Write a quantized model as ONNX with QuantizeLinear and DequantizeLinear, and with its own integers.
    """
    onnx = onnx_library()
    inputs, out = check_inputs(example_inputs), Path(path)
    if opset not in OPSETS:
        what = f"a version from {OPSETS[0]} to {OPSETS[-1]}"
        refuse("to_onnx: opset", what, repr(opset), "DequantizeLinear has no axis before 13.")
    NewFiles([out], force=force, size=0).check()
    rebuilt, report = dequantize_model(model, activations="fake_quant", return_report=True)
    form = form_of(model)
    found, refused = integers_of(form.describe(model, Options(), Report()).layers, report)
    make_plain(rebuilt, report)
    graph = Graph(export(rebuilt.eval(), inputs, opset, dynamic_batch, report))
    folded = fold(graph, found, recurrent_weights(rebuilt, found))
    if int(os.environ.get("CLAMP", "1")):
        clamp_integers(graph)
    repeat_behind_movers(graph)
    if int(os.environ.get("BIAS", "1")):
        quantize_biases(graph)
    made = graph.finish()
    onnx.checker.check_model(made, full_check=True)
    data = made.SerializeToString()
    with NewFiles([out], force=force, size=len(data)) as new:
        new.write(out, data, 0)
        new.commit()
    for t in found:
        if t not in folded: refused[t] = "not found"
    return report, refused
