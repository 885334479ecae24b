"""The names are those of torch.nn's own modules."""

from __future__ import annotations

import pytest
import torch.ao.nn.quantizable as nnqa
from torch import nn

from qdeq.layers.names import (
    GATE_PARTS,
    PROJECTIONS,
    UNUSED_PROJECTIONS,
    bias_name,
    is_inner_weight,
    lstm_cells,
    lstm_name,
    projection_weights,
    rnn_suffixes,
)


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_an_lstm(num_layers, bidirectional):
    theirs = dict(nn.LSTM(2, 3, num_layers, bidirectional=bidirectional).named_parameters())
    suffixes = rnn_suffixes(num_layers, bidirectional)
    assert [f"{name}_{suffix}" for suffix in suffixes for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")] == [
        *theirs
    ]
    assert all(is_inner_weight(name) == name.startswith("weight") for name in theirs)
    assert {bias_name(name) for name in theirs if name.startswith("weight")} == {n for n in theirs if "bias" in n}
    quantizable = nnqa.LSTM(2, 3, num_layers, bidirectional=bidirectional)
    cells = lstm_cells(num_layers, bidirectional)
    assert cells == [path for path, module in quantizable.named_modules() if path.endswith("cell")]
    for cell, suffix in zip(cells, suffixes, strict=True):
        for gates, part in GATE_PARTS.items():
            assert lstm_name(f"a.{cell}.{gates}.weight") == f"a.weight_{part}_{suffix}"
            assert lstm_name(f"{cell}.{gates}.bias") == f"bias_{part}_{suffix}"


@pytest.mark.parametrize("name", ["a.weight", "layers.0.weight", "a.layers.0.layer_fw.cell.igates.input.weight"])
def test_other_names_stay(name):
    assert lstm_name(name) == name


@pytest.mark.parametrize("options", [{}, {"kdim": 4, "vdim": 4}, {"kdim": 2, "vdim": 3}])
def test_an_attention(options):
    attention = nn.MultiheadAttention(4, 2, **options)
    names = {name for name, value in attention.named_parameters() if value is not None}
    weights = projection_weights(one_width=not options or options["kdim"] == 4)
    assert set(weights) <= names
    assert all(map(is_inner_weight, weights))
    assert set(attention._parameters) & set(UNUSED_PROJECTIONS) == set(UNUSED_PROJECTIONS)
    assert set(PROJECTIONS) <= set(dict(nnqa.MultiheadAttention(4, 2, **options).named_children()))
