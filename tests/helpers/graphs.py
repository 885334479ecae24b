"""Graphs for the tests: models converted by torch's FX mode, and graphs of single operators written by hand."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.ao.quantization as tq
from torch import Tensor, fx, nn
from torch.ao.quantization import quantize_fx

from tools.models import engine

__all__ = ["INPUT_SCALE", "INPUT_ZERO_POINT", "converted", "floats", "hand_built", "reloaded", "same_bits", "small"]

INPUT_SCALE, INPUT_ZERO_POINT = 0.05, 63


def converted(
    model: nn.Module, *inputs: Any, backend: str = "fbgemm", reference: bool = False, mapping: Any = None, **custom: Any
) -> fx.GraphModule:
    """A copy of ``model`` after ``prepare_fx``, one run and ``convert_fx`` or ``convert_to_reference_fx``."""
    with engine(backend):
        mapping = mapping or tq.get_default_qconfig_mapping(backend)
        preparing = {"prepare_custom_config": custom["prepare"]} if "prepare" in custom else {}
        converting = {"convert_custom_config": custom["convert"]} if "convert" in custom else {}
        backends = {"backend_config": custom["backend_config"]} if "backend_config" in custom else {}
        whole = copy.deepcopy(model)
        prepared = quantize_fx.prepare_fx(whole, mapping, inputs, **preparing, **backends)
        prepared(*inputs)
        convert = quantize_fx.convert_to_reference_fx if reference else quantize_fx.convert_fx
        return convert(prepared, **converting, **backends)


def hand_built(call: Callable[..., fx.Node], inputs: int = 1, **attributes: Any) -> fx.GraphModule:
    """A graph that quantizes its inputs, computes ``call(graph, *quantized)`` and gives that dequantized.

    ``attributes`` are what ``get_attr`` nodes of the graph ask for.
    """
    graph = fx.Graph()
    given = [graph.placeholder(f"x{number}") for number in range(inputs)]
    quantize = (INPUT_SCALE, INPUT_ZERO_POINT, torch.quint8)
    quantized = [graph.call_function(torch.quantize_per_tensor, (node, *quantize)) for node in given]
    graph.output(graph.call_method("dequantize", (call(graph, *quantized),)))
    return fx.GraphModule(attributes, graph).eval()


def small(*shape: int) -> Tensor:
    """Random values on the grid of :func:`hand_built`, integers below 127: no CPU saturates on them."""
    steps = torch.randint(-INPUT_ZERO_POINT, 127 - INPUT_ZERO_POINT, shape)
    return steps * torch.tensor(INPUT_SCALE)


def floats(value: Any) -> Any:
    """The value with its quantized tensors dequantized."""
    if isinstance(value, Tensor):
        return value.dequantize() if value.is_quantized else value
    return type(value)(map(floats, value)) if isinstance(value, tuple | list) else value


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors have the same bits."""
    return torch.equal(a.detach().contiguous().view(torch.int32), b.detach().contiguous().view(torch.int32))


def reloaded(model: nn.Module) -> nn.Module:
    """The model after ``torch.save`` and ``torch.load``."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    with warnings.catch_warnings():
        # torch warns about its own TypedStorage whenever it reads a quantized tensor.
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        return torch.load(file, weights_only=False)
