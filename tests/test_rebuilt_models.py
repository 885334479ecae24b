"""What comes out works: it trains, compiles, exports, runs in ONNX Runtime and can be quantized again."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qdeq
from tests.grids.models import Pooled
from tests.helpers.models import assert_same_bits, bits, quantize, small_vgg, tq

MODES = ("drop", "clamp", "fake_quant")


def pooled() -> nn.Module:
    torch.manual_seed(3)
    return quantize(Pooled(), torch.randn(4, 3, 16, 16))


@pytest.fixture(params=MODES)
def mode(request):
    return request.param


@pytest.mark.parametrize("bn", [False, True])
def test_trains(mode, bn):
    torch.manual_seed(0)
    model = qdeq.dequantize_model(small_vgg(bn=bn), activations=mode)
    x, y = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(mode, dtype):
    model = small_vgg()
    x = torch.randn(4, 3, 16, 16)
    expected = qdeq.dequantize_model(model, activations=mode)(x)
    for rebuilt in (qdeq.dequantize_model(model, activations=mode).to(dtype),):
        actual = rebuilt(x.to(dtype))
        assert actual.dtype == dtype
        assert torch.allclose(actual.float(), expected, atol=0.05)


@pytest.mark.parametrize("make", [small_vgg, pooled])
def test_compiles_without_a_graph_break(mode, make):
    model = qdeq.dequantize_model(make(), activations=mode)
    x = torch.randn(4, 3, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        assert_same_bits(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


@pytest.mark.slow
def test_compiles_with_inductor(mode):
    model = qdeq.dequantize_model(small_vgg(), activations=mode)
    x = torch.randn(4, 3, 16, 16)
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's own
        actual = torch.compile(model, fullgraph=True)(x)
    scale = float(small_vgg().classifier[3].scale) if mode == "fake_quant" else 0.0
    assert float((actual - model(x)).abs().max().detach()) <= scale * 1.01 + 1e-5


@pytest.mark.parametrize("make", [small_vgg, pooled])
def test_exports(mode, make):
    model = qdeq.dequantize_model(make(), activations=mode)
    x = torch.randn(4, 3, 16, 16)
    program = torch.export.export(model, (x,))
    assert_same_bits(program.module()(x), model(x))
    assert set(program.state_dict) == set(model.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_vgg, pooled])
def test_runs_in_onnx_runtime(mode, make, tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
    int8 = make()
    model = qdeq.dequantize_model(int8, activations=mode)
    x = torch.randn(4, 3, 16, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(model, (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
        graph = onnx.load(tmp_path / "model.onnx").graph
        # Otherwise ONNX Runtime rounds the float weights between Q/DQ pairs to int8 again, with scales of its own.
        options = runtime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        session = runtime.InferenceSession(tmp_path / "model.onnx", options)
    operations = [node.op_type for node in graph.node]
    roundings = sum(type(module).__name__ == "FakeQuantize" for module in model.modules())
    assert operations.count("QuantizeLinear") == operations.count("DequantizeLinear") == roundings
    assert (mode == "fake_quant") == (roundings > 0)
    actual = torch.from_numpy(session.run(None, {graph.input[0].name: x.numpy()})[0])
    assert float((actual - model(x)).abs().max().detach()) < 1e-4


def test_quantized_again_with_the_same_scales_gives_the_same_integers():
    int8 = small_vgg(bn=True)
    rebuilt = qdeq.dequantize_model(int8)
    for path in ("features.0", "features.4", "classifier.0", "classifier.3"):
        old, weight = int8.get_submodule(path).weight(), rebuilt.get_submodule(path).weight
        scales, zero_points = old.q_per_channel_scales(), old.q_per_channel_zero_points()
        again = torch.quantize_per_channel(weight.detach(), scales, zero_points, old.q_per_channel_axis(), torch.qint8)
        assert torch.equal(again.int_repr(), old.int_repr())


def test_goes_through_torchs_own_quantization_again():
    int8 = small_vgg()
    rebuilt = qdeq.dequantize_model(int8)
    x = torch.randn(16, 3, 16, 16)
    # The stubs became Identity: the user's class gets its stubs back before it is prepared.
    rebuilt.quant, rebuilt.dequant = tq.QuantStub(), tq.DeQuantStub()
    again = quantize(rebuilt, x, groups=[["features.0", "features.1"], ["features.3", "features.4"]])
    with torch.no_grad():
        expected, actual = int8(x), again(x)
    assert float((actual - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_moves_to_the_meta_device_and_back():
    model = qdeq.dequantize_model(small_vgg(), activations="fake_quant")
    state = model.state_dict()
    empty = qdeq.dequantize_model(small_vgg(seed=1), activations="fake_quant").to("meta")
    assert "FakeQuantize" in str(empty)
    empty.to_empty(device="cpu").load_state_dict(state)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(bits(empty(x)), bits(model(x)))
