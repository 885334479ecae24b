"""Recurrent networks that a graph runs by one operator: LSTM and GRU, whole or one cell of them.

Sources: ``ATen/native/RNN.cpp`` (arguments, and the order of layers and directions).
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from qdeq.errors import refuse
from qdeq.layers.layer import Layer, Role, Source
from qdeq.layers.names import rnn_suffixes
from qdeq.sources.eager.describe import BIAS, add_biases
from qdeq.sources.graph.packed import shape_of
from qdeq.sources.graph.program import Packed
from qdeq.sources.graph.schema import Call, operator_of
from qdeq.sources.graph.table import PackedOperator
from qdeq.words import join

__all__ = ["CELLS", "NETWORKS", "describe_cell", "describe_network", "flat_lstm", "network_call"]

_TWO = ("input", "hx")
NETWORKS = {
    "quantized_lstm": PackedOperator(nn.LSTM, dynamic=True, inputs=_TWO),
    "quantized_gru": PackedOperator(nn.GRU, dynamic=True, inputs=_TWO),
}
"""Operators of aten, by name, that take one packed cell for each layer and direction."""
CELLS = {
    "quantized_lstm_cell_dynamic": PackedOperator(nn.LSTMCell, dynamic=True, inputs=_TWO),
    "quantized_gru_cell_dynamic": PackedOperator(nn.GRUCell, dynamic=True, inputs=_TWO),
    "quantized_rnn_tanh_cell_dynamic": PackedOperator(nn.RNNCell, dynamic=True, inputs=_TWO),
    "quantized_rnn_relu_cell_dynamic": PackedOperator(nn.RNNCell, dynamic=True, inputs=_TWO),
}
"""Quantized operators, by name, that take the packed weights of the input and of the hidden state."""
_SETTINGS = ("bias", "num_layers", "dropout", "train", "bidirectional", "batch_first")


def network_call(node: fx.Node) -> Call | None:
    """The call that a node makes of one of :data:`NETWORKS`; None for any other node."""
    name = operator_of(node.target).removeprefix("aten::")
    if name not in NETWORKS:
        return None
    inputs, hidden, cells, *settings = node.args
    if not isinstance(cells, list | tuple):
        remedy = "Pass padded sequences to it instead of packed ones, and make the model again."
        refuse(str(node.meta.get("where", node.name)), "sequences in one tensor", "a packed sequence", remedy)
    given = {"input": inputs, "hx": tuple(hidden) if isinstance(hidden, list | tuple) else hidden}
    return Call(name, tuple(cells), None, given | dict(zip(_SETTINGS, settings, strict=True)))


def describe_network(layer: Layer, call: Call, cells: list[Packed]) -> None:
    """Add the arguments and parameters of an ``nn.LSTM`` or ``nn.GRU``."""
    given = call.arguments
    names = ("bias", "num_layers", "bidirectional", "batch_first")
    layer.args.update(_sizes(cells[0]), **{name: given[name] for name in names})
    # Set afterwards: torch warns about a dropout that one layer alone never applies.
    layer.attributes["dropout"] = given["dropout"]
    for suffix, cell in zip(rnn_suffixes(given["num_layers"], given["bidirectional"]), cells, strict=True):
        _add(layer, cell.parts, [cell.held] * 2, f"_{suffix}")


def describe_cell(layer: Layer, call: Call, weights: list[Packed]) -> None:
    """Add the arguments and parameters of an ``nn.LSTMCell``, ``nn.GRUCell`` or ``nn.RNNCell``."""
    layer.args.update(_sizes(Packed("cell", parts=tuple(weights))), bias=weights[0].bias is not None)
    if layer.kind is nn.RNNCell:
        layer.args["nonlinearity"] = "relu" if call.name == "quantized_rnn_relu_cell_dynamic" else "tanh"
    _add(layer, tuple(weights), [weight.held for weight in weights], "")


def flat_lstm(value: fx.Node) -> tuple[fx.Node, ...]:
    """``(output, (h, c))`` of ``nn.LSTM`` as aten's operators give it: ``(output, h, c)``."""
    output, hidden = (value.graph.call_function(operator.getitem, (value, at)) for at in (0, 1))
    return output, *(value.graph.call_function(operator.getitem, (hidden, at)) for at in (0, 1))


def _sizes(cell: Packed) -> dict[str, Any]:
    (_, inputs), (_, hidden) = (shape_of(part) for part in cell.parts)
    return {"input_size": inputs, "hidden_size": hidden}


def _add(layer: Layer, parts: tuple[Packed, ...], held: list[str], suffix: str) -> None:
    layer.role = Role.DYNAMIC
    for name, at, part in _named(parts, held, suffix):
        layer.add(f"weight_{name}", Source(join(layer.path, f"weight_{name}"), part.weight, at))
        layer.holds.append(at)
        source = None if part.bias is None else Source(join(layer.path, f"bias_{name}"), part.bias, at + BIAS)
        if source is not None:
            layer.holds.append(source.held)
        add_biases(layer, f"bias_{name}", [source], declared=layer.args["bias"])


def _named(parts: tuple[Packed, ...], held: list[str], suffix: str) -> Iterator[tuple[str, str, Packed]]:
    """What a weight is called behind ``weight_``, where the source holds it, and the weight."""
    for own, at, part in zip(("ih", "hh"), held, parts, strict=True):
        yield own + suffix, at if len(set(held)) > 1 else f"{at}.{own}", part
