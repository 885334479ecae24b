from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.quantization as tq
from torch import nn

from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import ENGINES, rebuilt_and_report

DTYPES = [(name, torch.qint8) for name in ENGINES]
DTYPES += [(name, torch.float16) for name in ENGINES if name in ("fbgemm", "x86")]
ON_DTYPES = pytest.mark.parametrize(("backend", "dtype"), DTYPES, ids=[f"{b}-{d}" for b, d in DTYPES])
SHAPES = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.25},
    {"num_layers": 2, "batch_first": True},
]


def quantized(layer: nn.Module, backend: str, dtype: torch.dtype) -> nn.Module:
    """``layer`` as ``quantize_dynamic`` leaves it."""
    with engine(backend):
        model = nn.Sequential(layer)
        model = tq.quantize_dynamic(model, {type(layer)}, dtype=dtype)
    return model[0]


def lstm_by_hand(x, weights, hidden_size):
    """One direction of one layer, gate by gate; ``x`` is (time, batch, features)."""
    w_ih, w_hh, b_ih, b_hh = weights
    h = c = x.new_zeros(x.shape[1], hidden_size)
    outputs = []
    for step in x:
        i, f, g, o = (step @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def gru_by_hand(x, weights, hidden_size):
    w_ih, w_hh, b_ih, b_hh = weights
    h = x.new_zeros(x.shape[1], hidden_size)
    outputs = []
    for step in x:
        ri, zi, ni = (step @ w_ih.T + b_ih).chunk(3, 1)
        rh, zh, nh = (h @ w_hh.T + b_hh).chunk(3, 1)
        r, z = (ri + rh).sigmoid(), (zi + zh).sigmoid()
        h = (1 - z) * (ni + r * nh).tanh() + z * h
        outputs.append(h)
    return torch.stack(outputs)


def by_hand(module, x):
    """The whole quantized module in float, from torch's own unpacked weights."""
    one_direction = lstm_by_hand if isinstance(module, nnqd.LSTM) else gru_by_hand
    weights, biases = module.get_weight(), module.get_bias()

    def floats(suffix):
        for kind in ("weight_ih", "weight_hh"):
            weight = weights[f"{kind}_{suffix}"]
            yield weight.dequantize() if weight.is_quantized else weight
        yield biases[f"bias_ih_{suffix}"]
        yield biases[f"bias_hh_{suffix}"]

    x = x.transpose(0, 1) if module.batch_first else x
    for layer in range(module.num_layers):
        outputs = [one_direction(x, tuple(floats(f"l{layer}")), module.hidden_size)]
        if module.bidirectional:
            back = one_direction(x.flip(0), tuple(floats(f"l{layer}_reverse")), module.hidden_size)
            outputs.append(back.flip(0))
        x = torch.cat(outputs, 2)
    return x.transpose(0, 1) if module.batch_first else x


@ON_DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "bidirectional", "batch_first"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_lstm_and_gru(kind, shape, backend, dtype):
    torch.manual_seed(61)
    original = kind(5, 6, **shape)
    module = quantized(original, backend, dtype)
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is kind
    assert list(rebuilt.state_dict()) == list(original.state_dict())
    assert rebuilt.extra_repr() == original.extra_repr()
    for name, weight in module.get_weight().items():
        assert_same_bits(getattr(rebuilt, name), weight.dequantize() if weight.is_quantized else weight)
    for name, bias in module.get_bias().items():
        assert_same_bits(getattr(rebuilt, name), bias)
        assert_same_bits(getattr(rebuilt, name), getattr(original, name).detach())
    x = torch.randn(4, 4, 5)
    output, _ = rebuilt.eval()(x)
    torch.testing.assert_close(output, by_hand(module, x), rtol=0, atol=1e-5)
    assert not report.activation_qparams
    with engine(backend):
        assert (module(x)[0] - output).abs().max() < 0.05, "it is not what the quantized module computes"
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in rebuilt.parameters())


@ON_DTYPES
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind, backend, dtype):
    torch.manual_seed(62)
    arguments = {"nonlinearity": "relu"} if kind is nn.RNNCell else {}
    original = kind(5, 6, **arguments)
    module = quantized(original, backend, dtype)
    rebuilt, _ = rebuilt_and_report(module)
    assert type(rebuilt) is kind
    assert rebuilt.extra_repr() == original.extra_repr()
    assert list(rebuilt.state_dict()) == list(original.state_dict())
    for name, weight in module.get_weight().items():
        assert_same_bits(getattr(rebuilt, name), weight.dequantize() if weight.is_quantized else weight)
    for name, bias in module.get_bias().items():
        assert_same_bits(getattr(rebuilt, name), bias)
    x = torch.randn(3, 5)
    with engine(backend):
        expected = module(x)
    actual = rebuilt(x)
    for a, b in zip(*((y if isinstance(y, tuple) else (y,)) for y in (actual, expected)), strict=True):
        assert (a - b).abs().max() < 0.05


@pytest.mark.parametrize("backend", ENGINES)
def test_a_cell_that_has_no_bias_gains_no_key(backend):
    """Even on qnnpack, which stores zeros: the module says that it has none."""
    with engine(backend):
        module = nnqd.GRUCell(5, 6, bias=False)
    rebuilt, _ = rebuilt_and_report(module)
    assert list(rebuilt.state_dict()) == ["weight_ih", "weight_hh"]


def test_dropout_of_a_single_layer_is_kept_without_a_warning():
    module = quantized(nn.LSTM(5, 6, num_layers=2, dropout=0.5), "fbgemm", torch.qint8)
    module.num_layers, module._all_weight_values = 1, module._all_weight_values[:1]
    rebuilt, _ = rebuilt_and_report(module)
    assert rebuilt.dropout == 0.5
    assert list(rebuilt.state_dict()) == ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
