"""``activations=``: what each mode holds, how close it is to int8, and how it is taken out again."""

from __future__ import annotations

import pytest
import torch

import qdeq
from qdeq.grids import Clamp
from tests.grids.models import Functions
from tests.helpers.models import assert_same_bits, quantize, small_vgg
from tests.helpers.saturation import assert_same_on_every_cpu

MODES = ("drop", "clamp", "fake_quant")


@pytest.mark.parametrize("bn", [False, True])
def test_modes_hold_the_same_parameters(bn):
    model = small_vgg(bn=bn)
    drop, clamp, fake = (qdeq.dequantize_model(model, activations=mode) for mode in MODES)
    parameters = dict(drop.named_parameters())
    for other in (clamp, fake):
        assert list(dict(other.named_parameters())) == list(parameters)
        for name, value in other.named_parameters():
            assert_same_bits(value, parameters[name])
    assert set(drop.state_dict()) == set(parameters)
    assert set(clamp.state_dict()) == set(fake.state_dict()) > set(parameters)


def test_scales_are_the_int8_models():
    model = small_vgg()
    fake, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    state = fake.state_dict()
    assert state["quant.activation_post_process.scale"] == model.quant.scale
    assert state["quant.activation_post_process.zero_point"] == model.quant.zero_point
    # A fused ReLU went back to its own place, and so did the rounding: once, after the ReLU.
    assert "features.0.activation_post_process.scale" not in state
    assert float(state["features.1.activation_post_process.scale"]) == pytest.approx(model.features[0].scale, rel=1e-7)
    assert state["features.1.activation_post_process.zero_point"] == model.features[0].zero_point
    assert len([name for name in state if name.endswith("zero_point")]) == len(report.activation_qparams)


def test_clamp_uses_the_converted_range_not_reduce_range():
    # The fbgemm qconfig observes with reduce_range: 0..127 chose the scale, but the op clamps to 0..255.
    model = small_vgg()
    clamp = qdeq.dequantize_model(model, activations="clamp")
    module = clamp.quant.activation_post_process
    assert isinstance(module, Clamp)
    scale, zero_point = float(model.quant.scale), int(model.quant.zero_point)
    x = torch.tensor([-1e6, 1e6, 0.1234])
    assert torch.allclose(module(x), torch.tensor([-zero_point * scale, (255 - zero_point) * scale, 0.1234]))
    huge = torch.full((1, 3, 16, 16), 1e6)
    with torch.no_grad():
        assert_same_bits(clamp.quant(huge), model.quant(huge).dequantize())


def test_clamp_is_nearer_to_int8_than_drop_where_values_leave_the_range():
    model = small_vgg(same_on_every_cpu=True)
    x = 4 * torch.randn(16, 3, 16, 16)  # calibrated on values of order 1
    assert_same_on_every_cpu(model, x)
    with torch.no_grad():
        expected = model(x)
        errors = {
            mode: float((qdeq.dequantize_model(model, activations=mode)(x) - expected).abs().mean()) for mode in MODES
        }
    assert errors["fake_quant"] < errors["clamp"] < errors["drop"]


@pytest.mark.parametrize("mode", ["clamp", "fake_quant"])
@pytest.mark.parametrize("name", ["avg_pool2d", "add", "chain"])
def test_drop_activations_gives_the_drop_model(mode, name):
    torch.manual_seed(6)
    model = quantize(Functions(name), torch.randn(4, 3, 12, 12))
    drop = qdeq.dequantize_model(model)
    rebuilt = qdeq.dequantize_model(model, activations=mode)
    keys = list(rebuilt.state_dict())
    dropped = qdeq.drop_activations(rebuilt)
    assert list(rebuilt.state_dict()) == keys
    assert type(dropped) is Functions
    assert str(dropped) == str(drop)
    assert list(dropped.state_dict()) == list(drop.state_dict())
    assert [len(m._forward_hooks) for m in dropped.modules()] == [len(m._forward_hooks) for m in drop.modules()]
    assert set(vars(dropped)) == set(vars(drop))
    x = torch.randn(4, 3, 12, 12)
    assert_same_bits(dropped(x), drop(x))


def test_drop_activations_refuses_what_is_no_module():
    with pytest.raises(qdeq.QdeqTypeError, match="model"):
        qdeq.drop_activations({"a": 1})


@pytest.mark.parametrize("bad", ["none", None, True, 1])
def test_unknown_mode_is_named(bad):
    with pytest.raises(qdeq.QdeqValueError, match="activations: expected one of drop, clamp, fake_quant"):
        qdeq.dequantize_model(small_vgg(), activations=bad)
