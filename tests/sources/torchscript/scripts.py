"""Scripts of small quantized models, and the graph that becomes of one run as the int8 model it is."""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.files.torch_archive.script import open_script
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.torchscript.follow import follow
from qdeq.weights.weight import QuantizedWeight

FORMS = ("scripted", "traced", "scripted and frozen", "traced and frozen")


def saved(script: Any) -> bytes:
    """The archive that torch.jit.save writes."""
    buffer = io.BytesIO()
    torch.jit.save(script, buffer)
    return buffer.getvalue()


def as_script(model: nn.Module, form: str, *inputs: Any) -> Any:
    """A model in one of :data:`FORMS`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a trace says which values it takes for constants, a script what torch will drop
        if form.startswith("scripted"):
            script = torch.jit.script(model)
        else:
            script = torch.jit.trace(model, inputs, check_trace=False)
    return torch.jit.freeze(script.eval()) if form.endswith("frozen") else script


def program_of(script: Any) -> Program:
    """The graph of a script's forward."""
    return follow(open_script(saved(script), "model")).program


def run_int8(program: Program, *inputs: Any) -> Any:
    """What the graph computes with torch's quantized operators."""
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in program.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = _live(program.attributes[node.target])
        elif node.op == "output":
            return args[0]
        else:
            values[node] = node.target(*args, **kwargs)
    raise AssertionError("no output")


def _live(value: Any) -> Any:
    """What torch's operators take."""
    if isinstance(value, QuantizedWeight):
        return value.to_torch()
    if not isinstance(value, Packed):
        return value
    weight = _live(value.weight)
    quantized = torch.ops.quantized
    if value.kind == "cell":
        cells = [_live(part) for part in value.parts]
        if value.parts[0].kind == "linear_fp16":
            return quantized.make_quantized_cell_params_fp16(*cells)
        return quantized.make_quantized_cell_params_dynamic(*cells, *(part.bias for part in value.parts), True)
    if value.kind == "embedding":
        return quantized.embedding_bag_prepack(weight)
    if value.kind == "linear":
        return quantized.linear_prepack(weight, value.bias)
    if value.kind == "linear_fp16":
        return quantized.linear_prepack_fp16(weight, value.bias)
    dims = len(value.stride)
    geometry = [value.stride, value.padding, value.dilation, value.groups]
    if value.transpose:
        geometry.insert(2, value.output_padding)
    name = f"conv{'_transpose' if value.transpose else ''}{dims}d_prepack"
    return getattr(quantized, name)(weight, value.bias, *geometry)


def same(a: Any, b: Any) -> bool:
    """Whether two outputs are equal bit for bit."""
    if isinstance(a, Tensor):
        a, b = (x.dequantize() if x.is_quantized else x for x in (a, b))
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return len(a) == len(b) and all(map(same, a, b))
