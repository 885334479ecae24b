"""Dynamic quantized LSTM, GRU and cells, int8 and float16 -> ``nn.LSTM``, ``nn.GRU``, ``nn.LSTMCell`` and so on."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.layers.layer import Layer, Role
from qdeq.layers.names import rnn_suffixes
from qdeq.sources.eager.describe import Context, Describe, Rule, add_biases, begin, packed_sources
from qdeq.weights.packed_state import cell_parts

__all__ = ["RULES", "begin_cell", "begin_rnn"]


def begin_rnn(kind: Any, module: Any, path: str) -> Layer:
    """An ``nn.LSTM`` or ``nn.GRU`` with the arguments of ``module``."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional")
    layer = begin(kind, module, path, *names, *(("proj_size",) if getattr(module, "proj_size", 0) else ()))
    # Set afterwards: torch warns about a dropout that one layer alone never applies.
    layer.attributes["dropout"] = module.dropout
    return layer


def begin_cell(kind: Any, module: Any, path: str) -> Layer:
    """An ``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell`` with the arguments of ``module``."""
    names = ("input_size", "hidden_size", "bias", *(("nonlinearity",) if kind is nn.RNNCell else ()))
    return begin(kind, module, path, *names)


def _add_linear(layer: Layer, packed: Any, held: str, dtype: torch.dtype, tail: str) -> None:
    weight, bias = packed_sources(packed, layer.path, held, dtype, weight=f"weight_{tail}", bias=f"bias_{tail}")
    layer.add(f"weight_{tail}", weight)
    add_biases(layer, f"bias_{tail}", [bias], declared=layer.args["bias"])


def _rnn(kind: Any) -> Describe:
    def describe_rnn(module: Any, path: str, context: Context) -> Layer:
        layer = begin_rnn(kind, module, path)
        layer.role = Role.DYNAMIC
        suffixes = rnn_suffixes(module.num_layers, module.bidirectional)
        for index, (suffix, parameters) in enumerate(zip(suffixes, module._all_weight_values, strict=True)):
            # A cell that torch would pack otherwise has no parts: zip then says so, and walk which module it is.
            packed_weights = cell_parts(parameters.param.__getstate__()[0]) or ()
            for part, packed in zip(("ih", "hh"), packed_weights, strict=True):
                held = f"_all_weight_values.{index}.param"
                _add_linear(layer, packed, held, module.dtype, f"{part}_{suffix}")
        return layer

    return describe_rnn


def _cell(kind: Any) -> Describe:
    def describe_cell(module: Any, path: str, context: Context) -> Layer:
        layer = begin_cell(kind, module, path)
        layer.role = Role.DYNAMIC
        for part in ("ih", "hh"):
            held = f"_packed_weight_{part}"
            _add_linear(layer, getattr(module, held), held, module.weight_dtype, part)
        return layer

    return describe_cell


_DTYPES = "int8 on every engine, float16 on fbgemm and x86"

RULES: dict[type[nn.Module], Rule] = {
    nnqd.LSTM: Rule(_rnn(nn.LSTM), "nn.LSTM", _DTYPES),
    nnqd.GRU: Rule(_rnn(nn.GRU), "nn.GRU", _DTYPES),
    nnqd.LSTMCell: Rule(_cell(nn.LSTMCell), "nn.LSTMCell", _DTYPES),
    nnqd.GRUCell: Rule(_cell(nn.GRUCell), "nn.GRUCell", _DTYPES),
    nnqd.RNNCell: Rule(_cell(nn.RNNCell), "nn.RNNCell", _DTYPES),
}
