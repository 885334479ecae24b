from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.ao.nn.quantizable as nnqa
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

from qdeq import dequantize_model
from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import ENGINES, rebuilt_and_report

EMBED, HEADS = 8, 2
OPTIONS = [
    {},
    {"bias": False},
    {"kdim": 6, "vdim": 4},
    {"add_zero_attn": True},
]


class Model(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.stubs = nn.ModuleList([tq.QuantStub() for _ in range(3)])
        self.dequant = tq.DeQuantStub()
        self.attention = attention

    def forward(self, *inputs):
        query, key, value = (stub(x) for stub, x in zip(self.stubs, inputs, strict=True))
        return self.dequant(self.attention(query, key, value)[0])


def converted(attention: nn.Module, backend: str, inputs) -> nn.Module:
    with engine(backend), warnings.catch_warnings():
        # torch warns about observers that nothing runs through, and about its own zero-dimensional tensors.
        warnings.simplefilter("ignore", UserWarning)
        model = Model(attention).eval()
        model.qconfig = tq.default_qconfig
        tq.prepare(model, inplace=True)
        with torch.no_grad():
            model(*inputs)
        tq.convert(model, inplace=True)
    return model


def by_hand(module, query, key, value):
    """Scaled dot-product attention from the unpacked projections; inputs are (time, batch, features)."""

    def project(linear, x):
        weight, bias = linear.weight().dequantize(), linear.bias()
        y = x @ weight.T
        return y if bias is None else y + bias

    def heads(x):
        return x.reshape(x.shape[0], -1, HEADS, EMBED // HEADS).permute(1, 2, 0, 3)

    q = heads(project(module.linear_Q, query))
    k = heads(project(module.linear_K, key))
    v = heads(project(module.linear_V, value))
    if module.add_zero_attn:
        zeros = torch.zeros_like(k[:, :, :1])
        k, v = torch.cat([k, zeros], 2), torch.cat([v, zeros], 2)
    weights = (q @ k.transpose(2, 3) / math.sqrt(EMBED // HEADS)).softmax(-1)
    joined = (weights @ v).permute(2, 0, 1, 3).reshape(query.shape[0], -1, EMBED)
    return project(module.out_proj, joined), weights.mean(1)


@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "no bias", "kdim vdim", "zero_attn"])
def test_static_attention(options, backend):
    torch.manual_seed(81)
    original = nn.MultiheadAttention(EMBED, HEADS, **options)
    reference = nn.MultiheadAttention(EMBED, HEADS, **options)
    inputs = (
        torch.randn(5, 3, EMBED),
        torch.randn(7, 3, options.get("kdim", EMBED)),
        torch.randn(7, 3, options.get("vdim", EMBED)),
    )
    if not options.get("bias", True):
        original.in_proj_bias = None
    model = converted(original, backend, inputs)
    module = model.attention
    assert type(module) is nnq.MultiheadAttention
    rebuilt, report = dequantize_model(model, return_report=True)
    assert type(rebuilt.attention) is nn.MultiheadAttention
    if not (backend == "qnnpack" and "bias" in options):
        assert list(rebuilt.attention.state_dict()) == list(reference.state_dict())
    else:
        assert any("as qnnpack stores" in note for note in report.notes["attention"])
    output, weights = rebuilt.attention(*inputs)
    expected, expected_weights = by_hand(module, *inputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-5)
    q, k, v = (getattr(module, f"linear_{letter}").weight().dequantize() for letter in "QKV")
    if "kdim" in options:
        assert_same_bits(rebuilt.attention.k_proj_weight, k)
        assert_same_bits(rebuilt.attention.v_proj_weight, v)
    else:
        assert_same_bits(rebuilt.attention.in_proj_weight, torch.cat([q, k, v]))
    assert_same_bits(rebuilt.attention.out_proj.weight, module.out_proj.weight().dequantize())
    with engine(backend):
        assert (model(*inputs) - rebuilt(*inputs)).abs().mean() < 0.1


def test_quantizable_with_float_linears_and_bias_kv():
    torch.manual_seed(82)
    module = nnqa.MultiheadAttention(EMBED, HEADS, add_bias_kv=True).eval()
    rebuilt, report = rebuilt_and_report(module)
    inputs = [torch.randn(5, 3, EMBED) for _ in range(3)]
    torch.testing.assert_close(rebuilt(*inputs)[0], module(*inputs)[0], rtol=0, atol=1e-5)
    assert_same_bits(rebuilt.bias_k, module.bias_k)
    assert any(item.source == "0.in_proj_weight" for item in report.dropped)


def test_quantized_bias_kv():
    torch.manual_seed(83)
    module = nnqa.MultiheadAttention(EMBED, HEADS, add_bias_kv=True).eval()
    module.__class__ = nnq.MultiheadAttention
    for name in ("bias_k", "bias_v"):
        value = module._parameters.pop(name).detach()
        setattr(module, name, torch.quantize_per_tensor(value, 0.01, 128, torch.quint8))
    rebuilt, _ = rebuilt_and_report(module)
    assert_same_bits(rebuilt.bias_k, module.bias_k.dequantize())
    assert_same_bits(rebuilt.bias_v, module.bias_v.dequantize())


def test_batch_first_is_right_where_torch_is_wrong():
    torch.manual_seed(84)
    module = nnqa.MultiheadAttention(EMBED, HEADS, batch_first=True).eval()
    rebuilt, report = rebuilt_and_report(module)
    assert "mixes the heads" in report.notes["0"][0]
    plain = nnqa.MultiheadAttention(EMBED, HEADS).eval()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(5, 3, EMBED)
    expected = plain(x, x, x)[0].transpose(0, 1)
    x = x.transpose(0, 1)
    torch.testing.assert_close(rebuilt(x, x, x)[0], expected, rtol=0, atol=1e-5)
    assert (module(x, x, x)[0] - expected).abs().max() > 1e-3, "torch is right now: drop the note"
