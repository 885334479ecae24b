"""Reads the layers inside quantized modules that are rebuilt as one: LSTM, MultiheadAttention."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qdeq.errors import QdeqValueError, expected
from qdeq.sources.eager.build import Build
from qdeq.sources.eager.classes.linear import packed_or_half
from qdeq.weights.packed import packed_bias
from qdeq.words import class_name, join

__all__ = ["drop_inner_qparams", "read_linear"]


def read_linear(layer: Any, where: str, build: Build) -> tuple[Any, Tensor | None]:
    """The weight source and the bias of a Linear, quantized or float.

    Args:
        layer: the Linear.
        where: its dotted path, for errors.
        build: counts a packed bias as read.

    Returns:
        (packed weight or float tensor (out_features, in_features), bias (out_features,) or None).

    Raises:
        QdeqValueError: ``layer`` is of another class.

    """
    if type(layer) in (nnq.Linear, nnqd.Linear):
        packed = layer._packed_params._packed_params
        build.use_bias(packed)
        return packed_or_half(packed, layer._packed_params.dtype, build), packed_bias(packed)
    if type(layer) in (nn.Linear, NonDynamicallyQuantizableLinear):
        return layer.weight, layer.bias
    raise QdeqValueError(expected(where, "a Linear", class_name(layer), "Convert the whole model again."))


def drop_inner_qparams(module: nn.Module, path: str, build: Build) -> None:
    """Name the scales and zero points inside a module that is rebuilt as one float module."""
    for prefix, part in module.named_modules():
        for start in ("", "output_"):
            if hasattr(part, f"{start}scale") and hasattr(part, f"{start}zero_point"):
                build.drop_qparams(part, join(path, prefix), "quantization inside a module rebuilt as one", start)
