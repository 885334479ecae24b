"""Many convolutions in one call: each engine, each shape, and what is left to the call that reads one."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq import dequantize_model
from qdeq.weights import packed
from tests.helpers.models import assert_same_bits
from tests.weights.packed import cases

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
ENGINES = [
    name for name in ("fbgemm", "x86", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines
]


def convolution(backend: str, groups: int, *, scale: float | None = None, bias: bool = True) -> nnq.Conv2d:
    with cases.engine(backend):
        layer = nnq.Conv2d(2 * groups, 4 * groups, (3, 1 + groups), groups=groups)
        integers = torch.randint(-128, 128, layer.weight().shape, dtype=torch.int8)
        scales = torch.rand(4 * groups, dtype=torch.float64) + 0.1
        if scale is not None:
            scales[1] = scale
        zeros = torch.zeros(4 * groups, dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(integers, scales, zeros, 0)
        layer.set_weight_bias(weight, torch.randn(4 * groups) if bias else None)
    return layer


def read(layers, dtype=torch.float32, **kwargs):
    outs = [torch.full(layer.weight().shape, float("nan"), dtype=dtype) for layer in layers]
    return outs, packed.read_convolutions([layer._packed_params for layer in layers], outs, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_engine_gives_the_bits_of_its_own_unpack(dtype):
    torch.manual_seed(0)
    layers = [convolution(name, groups, bias=bias) for name in ENGINES for groups in (1, 2, 8) for bias in (0, 1)]
    outs, results = read(layers, dtype)
    for layer, out, (done, bias) in zip(layers, outs, results, strict=True):
        assert done
        assert torch.equal(out, layer.weight().dequantize().to(dtype))
        if layer.bias() is None:
            assert bias is None
        else:
            assert_same_bits(bias, layer.bias())
            assert bias.data_ptr() != layer.bias().data_ptr(), "the live bias was handed out"


def test_what_cannot_be_read_is_left_out_and_the_rest_is_read():
    with cases.engine("fbgemm"):
        transposed = cases.random_transposed_conv(random.Random(0), 2)
    good, bad = convolution("fbgemm", 1), convolution(ENGINES[-1], 1, scale=float("nan"))
    objects = [good._packed_params, transposed, bad._packed_params, good._packed_params]
    shapes = [good.weight().shape, transposed.unpack()[0].shape, bad.weight().shape, (1, 2, 3, 4)]
    outs = [torch.zeros(shape) for shape in shapes]
    results = packed.read_convolutions(objects, outs)
    assert [done for done, _ in results] == [True, False, False, False]
    assert_same_bits(outs[0], good.weight().dequantize())
    assert packed.read_convolutions(objects[2:3], outs[2:3], allow_bad_scales=True)[0][0]
    assert_same_bits(outs[2], bad.weight().dequantize())


def test_without_the_extension_nothing_is_read(monkeypatch):
    monkeypatch.setattr(packed.ops, "why_not_in_place", lambda: "taken away by a test")
    layer = convolution("fbgemm", 1)
    assert read([layer])[1] == [(False, None)]
    rebuilt = dequantize_model(nn.Sequential(layer))
    assert_same_bits(rebuilt[0].weight, layer.weight().dequantize())


def test_layers_of_one_packed_weight_share_no_memory_when_rebuilt():
    layer = convolution("fbgemm", 1)
    rebuilt = dequantize_model(nn.Sequential(layer, copy.copy(layer)))
    one, two = (rebuilt[i] for i in range(2))
    assert one is not two
    for name in ("weight", "bias"):
        assert_same_bits(getattr(one, name), getattr(two, name))
        assert getattr(one, name).data_ptr() != getattr(two, name).data_ptr()
