from __future__ import annotations

import warnings

import pytest
import torch
import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn
from torch.ao.nn.quantizable.modules.rnn import _LSTMLayer

from qdeq import QdeqError, dequantize_model
from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import ENGINES, rebuilt_and_report

SHAPES = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}, {"bias": False}]


class Model(nn.Module):
    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.lstm = lstm

    def forward(self, x):
        return self.dequant(self.lstm(self.quant(x))[0])


def converted(lstm: nn.LSTM, backend: str, example: torch.Tensor) -> nn.Module:
    """LSTM -> quantizable (prepare) -> quantized (convert), as torch does it by default."""
    with engine(backend), warnings.catch_warnings():
        # torch warns about observers that nothing runs through, and about its own zero-dimensional tensors.
        warnings.simplefilter("ignore", UserWarning)
        model = Model(lstm).eval()
        model.qconfig = tq.default_qconfig
        tq.prepare(model, inplace=True)
        with torch.no_grad():
            model(example)
        tq.convert(model, inplace=True)
    return model


def expected_state(module: nn.Module, bias: bool) -> dict[str, torch.Tensor]:
    """By hand from torch's unpacked gates, for joined gates."""
    state = {}
    for index, layer in enumerate(module.layers):
        for direction, suffix in (("layer_fw", ""), ("layer_bw", "_reverse")):
            if not hasattr(layer, direction):
                continue
            cell = getattr(layer, direction).cell
            for kind, gates in (("ih", cell.igates), ("hh", cell.hgates)):
                state[f"weight_{kind}_l{index}{suffix}"] = gates.weight().dequantize()
                if bias:
                    state[f"bias_{kind}_l{index}{suffix}"] = gates.bias().detach()
    return state


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "bidirectional", "batch_first", "no bias"])
def test_static_lstm(shape, backend):
    torch.manual_seed(71)
    original, x = nn.LSTM(5, 6, **shape), torch.randn(4, 4, 5)
    reference = nn.LSTM(5, 6, **shape)
    model = converted(original, backend, x)
    assert type(model.lstm) is nnq.LSTM
    rebuilt, report = dequantize_model(model, return_report=True)
    assert type(rebuilt.lstm) is nn.LSTM
    assert list(rebuilt.lstm.state_dict()) == list(reference.state_dict()), "a key was gained or lost"
    state = expected_state(model.lstm, shape.get("bias", True))
    for name, tensor in rebuilt.lstm.state_dict().items():
        assert_same_bits(tensor, state[name])
    reference.load_state_dict(state)
    torch.testing.assert_close(rebuilt(x), reference(x)[0], rtol=0, atol=1e-5)
    with engine(backend), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All inputs of this cat operator", UserWarning)
        # Every product and sum inside is rounded to 8 bits: near, not equal.
        assert (rebuilt(x) - model(x)).abs().mean() < 0.1
    assert {"quant"} == set(report.activation_qparams)
    assert any(item.source.startswith("lstm.layers.0.layer_fw.cell.igates.scale") for item in report.dropped)


def test_split_gates_and_float_gates():
    """Quantizable modules with float Linears inside, joined or one per gate, are the same LSTM."""
    torch.manual_seed(72)
    original = nn.LSTM(5, 6, num_layers=2, bidirectional=True)
    for split in (False, True):
        module = nnqa.LSTM(5, 6, num_layers=2, bidirectional=True, split_gates=split)
        for index in range(2):
            original.qconfig = None
            module.layers[index] = _LSTMLayer.from_float(original, index, tq.default_qconfig, split_gates=split)
        rebuilt, report = rebuilt_and_report(module.eval())
        for name, tensor in original.state_dict().items():
            assert_same_bits(rebuilt.state_dict()[name], tensor)
        rows = {entry.source: entry.note for entry in report.entries if entry.target == "0.weight_ih_l0"}
        assert len(rows) == (4 if split else 1)
        if split:
            assert rows["0.layers.0.layer_fw.cell.igates.forget.weight"] == "rows 6 to 11"


@pytest.mark.parametrize("split", [False, True])
def test_lstm_cell(split):
    torch.manual_seed(73)
    original = nn.LSTMCell(5, 6)
    original.qconfig = None
    module = nnqa.LSTMCell.from_float(original, split_gates=split)
    rebuilt, _ = rebuilt_and_report(module)
    assert type(rebuilt) is nn.LSTMCell
    x = torch.randn(3, 5)
    for actual, expected in zip(rebuilt(x), module(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_another_class_inside_is_named():
    module = nnqa.LSTM(5, 6)
    module.layers[0].layer_fw.cell.igates = nn.Identity()
    with pytest.raises(QdeqError, match=r"0\.layers\.0\.layer_fw\.cell\.igates: expected a Linear, got .*Identity"):
        rebuilt_and_report(module)
