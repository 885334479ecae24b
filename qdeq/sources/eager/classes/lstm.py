"""Quantized and quantizable LSTM and LSTMCell, made of Linears -> ``nn.LSTM`` and ``nn.LSTMCell``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.layers.layer import Layer
from qdeq.layers.names import GATE_PARTS, GATES, lstm_cells, rnn_suffixes
from qdeq.sources.eager.classes.rnn import begin_cell, begin_rnn
from qdeq.sources.eager.describe import Context, Rule, add_biases, drop_inner_qparams, read_linear
from qdeq.words import join

__all__ = ["RULES"]


def describe_lstm(module: Any, path: str, context: Context) -> Layer:
    """Describe an LSTM whose gates are Linears, joined or one per gate."""
    layer = begin_rnn(nn.LSTM, module, path)
    size = module.num_layers, module.bidirectional
    for name, suffix in zip(lstm_cells(*size), rnn_suffixes(*size), strict=True):
        _add_gates(layer, module.get_submodule(name), name, f"_{suffix}", declared=module.bias)
    drop_inner_qparams(layer, module)
    if module.dropout:
        layer.notes.append("the quantized LSTM ignored its dropout; the float one drops in training mode")
    return layer


def describe_lstm_cell(module: Any, path: str, context: Context) -> Layer:
    """Describe a quantizable LSTMCell whose gates are Linears, joined or one per gate."""
    layer = begin_cell(nn.LSTMCell, module, path)
    _add_gates(layer, module, "", "", declared=module.bias)
    drop_inner_qparams(layer, module)
    return layer


def _add_gates(layer: Layer, cell: Any, name: str, suffix: str, *, declared: bool) -> None:
    for gates, kind in GATE_PARTS.items():
        linears, at = getattr(cell, gates), join(layer.path, join(name, gates))
        # Split gates are a ModuleDict in the order in which nn.LSTM stacks its rows.
        parts = [(join(at, gate), linears[gate]) for gate in GATES] if cell.split_gates else [(at, linears)]
        read = [read_linear(part, label) for label, part in parts]
        layer.add(f"weight_{kind}{suffix}", *(weight for weight, _ in read))
        add_biases(layer, f"bias_{kind}{suffix}", [bias for _, bias in read], declared=declared)


RULES: dict[type[nn.Module], Rule] = {
    nnq.LSTM: Rule(describe_lstm, "nn.LSTM"),
    nnqa.LSTM: Rule(describe_lstm, "nn.LSTM", "with float or quantized Linears inside"),
    nnqa.LSTMCell: Rule(describe_lstm_cell, "nn.LSTMCell", "with float or quantized Linears inside"),
}
