from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized.reference as nnqr
from torch import nn

from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import rebuilt_and_report


def qparams(shape, kind: str):
    if kind == "per_tensor":
        return {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 0.02, "zero_point": 3}
    scale = torch.rand(shape[0], dtype=torch.float64) / 50 + 1e-3
    zero_point = torch.randint(-5, 5, (shape[0],))
    return {
        "qscheme": torch.per_channel_affine,
        "dtype": torch.qint8,
        "scale": scale,
        "zero_point": zero_point,
        "axis": 0,
    }


KINDS = pytest.mark.parametrize("kind", ["per_tensor", "per_channel"])


def check(module, original):
    """The weight that the module computes with, not its master weight; everything else is copied."""
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is type(original)
    assert rebuilt.extra_repr() == original.extra_repr()
    assert list(rebuilt.state_dict()) == list(original.state_dict())
    assert_same_bits(rebuilt.weight, module.get_weight())
    assert not torch.equal(rebuilt.weight, module.weight), "that is the master weight"
    if getattr(original, "bias", None) is not None:
        assert_same_bits(rebuilt.bias, original.bias.detach())
        assert rebuilt.bias.data_ptr() != module.bias.data_ptr()
    assert report.entries[0].dtype == "qint8"
    return rebuilt


@KINDS
@pytest.mark.parametrize("bias", [True, False])
def test_linear(kind, bias):
    torch.manual_seed(91)
    original = nn.Linear(6, 4, bias=bias)
    module = nnqr.Linear.from_float(original, qparams((4, 6), kind))
    rebuilt = check(module, original)
    x = torch.randn(3, 6)
    assert_same_bits(rebuilt(x), module(x))


@KINDS
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("transposed", ["", "Transpose"])
def test_convolutions(kind, dims, transposed):
    torch.manual_seed(92)
    extra = {"output_padding": 1} if transposed else {}
    original = getattr(nn, f"Conv{transposed}{dims}d")(4, 4, 3, stride=2, padding=1, groups=2, **extra)
    reference = getattr(nnqr, f"Conv{transposed}{dims}d")
    module = reference.from_float(original, qparams(original.weight.shape, kind))
    rebuilt = check(module, original)
    x = torch.randn(2, 4, *[7] * dims)
    assert_same_bits(rebuilt(x), module(x))


@pytest.mark.parametrize("bag", [False, True])
def test_embeddings_keep_their_options(bag):
    torch.manual_seed(93)
    options = {"padding_idx": 2, "max_norm": 1.5, "norm_type": 1.0, "scale_grad_by_freq": True}
    options |= {"mode": "mean", "include_last_offset": True} if bag else {}
    original = (nn.EmbeddingBag if bag else nn.Embedding)(7, 5, **options)
    kind = nnqr.EmbeddingBag if bag else nnqr.Embedding
    module = kind.from_float(original, qparams((7, 5), "per_tensor"))
    rebuilt = check(module, original)
    assert rebuilt.padding_idx == 2
    assert rebuilt.max_norm == 1.5


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lstm_and_gru(kind):
    torch.manual_seed(94)
    original = getattr(nn, kind)(5, 6, num_layers=2, bidirectional=True)
    table = {name: qparams(None, "per_tensor") for name in original._flat_weights_names if "weight" in name}
    module = getattr(nnqr, kind).from_float(original, {**table, "is_decomposed": False})
    rebuilt, _ = rebuilt_and_report(module)
    assert type(rebuilt) is type(original)
    for name, value in zip(module._flat_weights_names, module.get_flat_weights(), strict=True):
        assert_same_bits(getattr(rebuilt, name), value.detach())
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(rebuilt(x)[0], module(x)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind):
    torch.manual_seed(95)
    original = getattr(nn, kind)(5, 6)
    table = {name: qparams(None, "per_tensor") for name in ("weight_ih", "weight_hh")}
    module = getattr(nnqr, kind).from_float(original, {**table, "is_decomposed": False})
    rebuilt, _ = rebuilt_and_report(module)
    assert type(rebuilt) is type(original)
    assert_same_bits(rebuilt.weight_ih, module.get_weight_ih())
    assert_same_bits(rebuilt.weight_hh, module.get_weight_hh())
    x = torch.randn(3, 5)
    first = [y[0] if isinstance(y, tuple) else y for y in (rebuilt(x), module(x))]
    torch.testing.assert_close(*first, rtol=0, atol=1e-6)


def test_a_dtype_that_leaves_the_weight_float():
    original = nn.Linear(6, 4)
    module = nnqr.Linear.from_float(original, {"qscheme": None, "dtype": torch.float16})
    rebuilt, _ = rebuilt_and_report(module)
    assert_same_bits(rebuilt.weight, module.get_weight().detach())
