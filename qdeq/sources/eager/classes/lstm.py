"""Quantized and quantizable LSTM and LSTMCell, made of Linears -> ``nn.LSTM`` and ``nn.LSTMCell``."""

from __future__ import annotations

from typing import Any

import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.build import Build, Rule
from qdeq.sources.eager.classes.rnn import make_rnn, suffixes
from qdeq.sources.eager.inner import drop_inner_qparams, read_linear
from qdeq.words import join

__all__ = ["RULES"]

_GATES = ("input", "forget", "cell", "output")


def build_lstm(module: Any, path: str, build: Build) -> nn.LSTM:
    """Rebuild an LSTM whose gates are Linears, joined or one per gate."""
    lstm: nn.LSTM = make_rnn(nn.LSTM, module)
    cells = [
        (f"layers.{index}.{direction}.cell", getattr(layer, direction).cell)
        for index, layer in enumerate(module.layers)
        for direction in (("layer_fw", "layer_bw") if module.bidirectional else ("layer_fw",))
    ]
    for suffix, (name, cell) in zip(suffixes(module), cells, strict=True):
        _write_gates(cell, name, f"_{suffix}", module, path, lstm, build)
    drop_inner_qparams(module, path, build)
    if module.dropout:
        build.report.note(path, "the quantized LSTM ignored its dropout; the float one drops in training mode")
    return lstm


def build_lstm_cell(module: Any, path: str, build: Build) -> nn.LSTMCell:
    """Rebuild a quantizable LSTMCell whose gates are Linears, joined or one per gate."""
    cell = nn.LSTMCell(module.input_size, module.hidden_size, module.bias, device="meta")
    _write_gates(module, "", "", module, path, cell, build)
    drop_inner_qparams(module, path, build)
    return cell


def _write_gates(cell: Any, name: str, suffix: str, module: Any, path: str, target: Any, build: Build) -> None:
    prefix = f"{name}." if name else ""
    for kind, gates in (("ih", "igates"), ("hh", "hgates")):
        linears = getattr(cell, gates)
        # Split gates are a ModuleDict in the order in which nn.LSTM stacks its rows.
        names = [f"{prefix}{gates}.{gate}" for gate in _GATES] if cell.split_gates else [f"{prefix}{gates}"]
        parts = [linears[gate] for gate in _GATES] if cell.split_gates else [linears]
        weights, biases = zip(
            *(read_linear(part, join(path, label), build) for part, label in zip(parts, names, strict=True)),
            strict=True,
        )
        labels = [f"{label}.weight" for label in names]
        build.stack(list(zip(labels, weights, strict=True)), module, path, target, f"weight_{kind}{suffix}")
        labels = [f"{label}.bias" for label in names]
        build.biases(list(zip(labels, biases, strict=True)), module, path, target, f"bias_{kind}{suffix}")


RULES: dict[type[nn.Module], Rule] = {
    nnq.LSTM: Rule(build_lstm, "nn.LSTM"),
    nnqa.LSTM: Rule(build_lstm, "nn.LSTM", "with float or quantized Linears inside"),
    nnqa.LSTMCell: Rule(build_lstm_cell, "nn.LSTMCell", "with float or quantized Linears inside"),
}
