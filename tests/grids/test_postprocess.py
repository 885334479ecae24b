"""Clamp and FakeQuantize: ranges, ties, dtypes, hooks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

import qdeq
from qdeq.grids import FakeQuantize, Grid
from tests.grids.models import share_equal
from tests.helpers.models import engine, small_vgg, tq


def test_user_hooks_see_the_rounded_output():
    model = small_vgg(fuse=False)
    seen = []
    model.features[0].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 16, 16)
    model(x)
    qdeq.dequantize_model(model, activations="fake_quant")(x)
    assert share_equal(seen[1], seen[0].dequantize()) >= 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scale_stays_float32_when_the_model_is_cast(dtype):
    model = small_vgg()
    for rebuilt in (
        qdeq.dequantize_model(model, activations="fake_quant", dtype=dtype),
        qdeq.dequantize_model(model, activations="fake_quant").to(dtype),
    ):
        scale = rebuilt.quant.activation_post_process.scale
        assert scale.dtype == torch.float32
        assert scale == model.quant.scale
        assert rebuilt(torch.randn(2, 3, 16, 16, dtype=dtype)).dtype == dtype


def test_signed_inputs_use_their_own_range():
    model = nn.Sequential(tq.QuantStub(), tq.DeQuantStub()).eval()
    model.qconfig = tq.QConfig(
        activation=tq.MinMaxObserver.with_args(dtype=torch.qint8), weight=tq.default_weight_observer
    )
    tq.prepare(model, inplace=True)
    model(torch.randn(100))
    tq.convert(model, inplace=True)
    rebuilt = qdeq.dequantize_model(model, activations="fake_quant")
    assert (rebuilt[0].activation_post_process.quant_min, rebuilt[0].activation_post_process.quant_max) == (-128, 127)
    x = 3 * torch.randn(1000)
    assert share_equal(rebuilt(x), model(x)) >= 0.99


@pytest.mark.parametrize(("ties", "expected"), [("integer", [1.0, 3.0]), ("value", [2.0, 2.0])])
def test_ties_of_averages(ties, expected):
    # Halfway, with an odd zero point: integers 33 + 1.5 and 33 + 2.5. A float a hair beside it is still a tie.
    module = FakeQuantize(Grid(1.0, 33), ties=ties)
    for nudge in (-1e-6, 0.0, 1e-6):
        assert module(torch.tensor([1.5, 2.5]) + nudge).tolist() == expected
    x = torch.tensor([1.2, 300.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize("options", [{}, {"ties": "integer"}, {"ties": "value"}, {"zero_point_first": True}])
def test_infinities_go_to_the_ends_of_the_range(options):
    module = FakeQuantize(Grid(0.5, 3), **options)
    assert module(torch.tensor([torch.inf, -torch.inf, 1e30, -1e30])).tolist() == [126.0, -1.5, 126.0, -1.5]


def test_float64_gives_the_values_of_dequantize():
    """Cast to float64 for exact sums, a model still passes on the float32 values that the int8 model stands for."""
    torch.manual_seed(8)
    module = FakeQuantize(Grid(0.1234567, 33)).double()
    x = 10 * torch.randn(10_000, dtype=torch.float64)
    expected = torch.quantize_per_tensor(x.float(), float(module.scale), 33, torch.quint8).dequantize()
    actual = module(x)
    assert actual.dtype == torch.float64
    assert torch.equal(actual, expected.double())


def test_float64_holds_the_same_weights():
    model = small_vgg()
    x = torch.randn(32, 3, 16, 16)
    drop = qdeq.dequantize_model(model)
    for imitation in (
        qdeq.dequantize_model(model, activations="fake_quant").double(),
        qdeq.dequantize_model(model, activations="fake_quant", dtype=torch.float64),
    ):
        for name, value in drop.named_parameters():
            assert torch.equal(imitation.get_parameter(name), value.double())
        with torch.no_grad():
            assert share_equal(imitation(x.double()).float(), model(x)) >= 0.995


@pytest.mark.parametrize("zero_point", [0, 7, 64, 127])
def test_an_input_is_rounded_as_torch_quantizes_it(zero_point):
    """Half of these values are ties; with an odd zero point it matters whether that is added before rounding."""
    model = nn.Sequential(nnq.Quantize(0.25, zero_point, torch.quint8), nnq.DeQuantize())
    rebuilt = qdeq.dequantize_model(model, activations="fake_quant")
    x = torch.arange(-256, 256) * 0.125
    assert torch.equal(rebuilt(x), model(x))
    assert torch.equal(rebuilt.double()(x.double()).float(), model(x))


@pytest.mark.parametrize("zero_point", [0, 7, 64, 127])
@pytest.mark.parametrize("name", ["fbgemm", "x86", "onednn", "qnnpack"])
def test_ties_of_a_layer_go_where_its_engine_sends_them(name, zero_point):
    """onednn adds the zero point before it rounds, the others after; x86 is one or the other, by CPU."""
    if name not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {name}")
    with engine(name):
        linear, conv = nnq.Linear(8, 8, bias_=False), nnq.Conv2d(8, 8, 1, bias=False)
        linear.set_weight_bias(torch.quantize_per_tensor(torch.eye(8), 1.0, 0, torch.qint8), None)
        conv.set_weight_bias(torch.quantize_per_tensor(torch.eye(8)[:, :, None, None], 1.0, 0, torch.qint8), None)
        for layer, shape in ((linear, (64, 8)), (conv, (4, 8, 5, 5))):
            layer.scale, layer.zero_point = 2.0, zero_point
            model = nn.Sequential(nnq.Quantize(1.0, 0, torch.quint8), layer, nnq.DeQuantize())
            x = torch.arange(100).repeat(8)[: math.prod(shape)].reshape(shape).float()
            assert torch.equal(qdeq.dequantize_model(model, activations="fake_quant")(x), model(x))
