"""Dynamic quantized LSTM, GRU and cells, int8 and float16 -> ``nn.LSTM``, ``nn.GRU``, ``nn.LSTMCell`` and so on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq.sources.eager.build import Build, Rule
from qdeq.sources.eager.classes.linear import packed_or_half

__all__ = ["RULES", "make_rnn", "suffixes"]


def make_rnn(rnn_class: Any, module: Any, *, proj_size: int = 0) -> Any:
    """An ``nn.LSTM`` or ``nn.GRU`` on the meta device with the arguments of ``module``."""
    arguments = {"proj_size": proj_size} if proj_size else {}
    layer = rnn_class(
        module.input_size,
        module.hidden_size,
        module.num_layers,
        bias=module.bias,
        batch_first=module.batch_first,
        bidirectional=module.bidirectional,
        device="meta",
        **arguments,
    )
    # Set afterwards: torch warns about a dropout that one layer alone never applies.
    layer.dropout = module.dropout
    return layer


def suffixes(module: Any) -> list[str]:
    """What the parameter names of each layer and direction end with, in torch's order: ``l0``, ``l0_reverse``, ..."""
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [f"l{layer}{direction}" for layer in range(module.num_layers) for direction in directions]


def _rnn_builder(rnn_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_rnn(module: Any, path: str, build: Build) -> Any:
        rnn = make_rnn(rnn_class, module)
        for suffix, parameters in zip(suffixes(module), module._all_weight_values, strict=True):
            build.use(parameters.param)
            build.use_bias(parameters.param)
            # The state is (kind, biases, doubles, integers, packed weights); the packed weights hold the biases, too.
            packed_weights = parameters.param.__getstate__()[0][4]
            for kind, packed in zip(("ih", "hh"), packed_weights, strict=True):
                build.weight(packed_or_half(packed, module.dtype, build), module, path, rnn, f"weight_{kind}_{suffix}")
                build.packed_bias(packed, module, path, rnn, f"bias_{kind}_{suffix}")
        return rnn

    return build_rnn


def _cell_builder(cell_class: Any) -> Callable[[Any, str, Build], Any]:
    def build_cell(module: Any, path: str, build: Build) -> Any:
        arguments = {"nonlinearity": module.nonlinearity} if cell_class is nn.RNNCell else {}
        cell = cell_class(module.input_size, module.hidden_size, module.bias, device="meta", **arguments)
        for kind in ("ih", "hh"):
            packed = getattr(module, f"_packed_weight_{kind}")
            build.weight(packed_or_half(packed, module.weight_dtype, build), module, path, cell, f"weight_{kind}")
            build.packed_bias(packed, module, path, cell, f"bias_{kind}")
        return cell

    return build_cell


_DTYPES = "int8 on every engine, float16 on fbgemm and x86"

RULES: dict[type[nn.Module], Rule] = {
    nnqd.LSTM: Rule(_rnn_builder(nn.LSTM), "nn.LSTM", _DTYPES),
    nnqd.GRU: Rule(_rnn_builder(nn.GRU), "nn.GRU", _DTYPES),
    nnqd.LSTMCell: Rule(_cell_builder(nn.LSTMCell), "nn.LSTMCell", _DTYPES),
    nnqd.GRUCell: Rule(_cell_builder(nn.GRUCell), "nn.GRUCell", _DTYPES),
    nnqd.RNNCell: Rule(_cell_builder(nn.RNNCell), "nn.RNNCell", _DTYPES),
}
