"""int8 state dicts into classes whose norms were folded away: the outputs of the rebuilt model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.files.torch_archive.forms import bits, poisoned
from tests.helpers.models import quantize
from tests.helpers.norm_models import Dense, Points, UNet, trained


def int8(make, backend: str = "fbgemm", **options) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = trained(make(**options))
    x = model.example()
    return quantize(model, x, groups=[list(group) for group in model.groups], backend=backend), x


NETS = {
    "late norms, with biases": (Points, {}),
    "late norms, without": (Points, {"bias": False}),
    "dense": (Dense, {}),
    "unet": (UNet, {}),
}


@pytest.mark.parametrize("name", NETS)
def test_into_and_unfolded_give_the_outputs_of_the_rebuilt_model(name):
    make, options = NETS[name]
    # Transposed convolutions are quantized per tensor, as qnnpack quantizes everything by default.
    model, x = int8(make, "qnnpack" if make is UNet else "fbgemm", **options)
    rebuilt = qdeq.dequantize_model(model)
    loaded, fresh = poisoned(make(**options)), poisoned(make(**options))
    qdeq.dequantize_state_dict(model.state_dict(), into=loaded)
    fresh.load_state_dict(qdeq.dequantize_model(model, unfold_bn=True).state_dict(), strict=True)
    with torch.no_grad():
        expected = rebuilt(x)
        assert float((loaded.eval()(x) - expected).abs().max() / expected.abs().max()) < 1e-5
        assert float((fresh.eval()(x) - expected).abs().max() / expected.abs().max()) < 1e-5
        if name == "late norms, with biases":  # no bias moves, and nothing is rounded in another order
            assert torch.equal(bits(loaded(x)), bits(expected))
            assert torch.equal(bits(fresh(x)), bits(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_norms_that_may_follow_several_layers_are_listed_and_can_be_stated(bias):
    model, x = int8(Points, bias=bias, traced=False)
    state, fresh = model.state_dict(), Points(bias=bias, traced=False)
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    with pytest.raises(qdeq.QdeqValueError) as caught:
        qdeq.dequantize_state_dict(state, into=fresh)
    assert "bn1 behind conv1 or conv2 or fc1; bn2 behind" in str(caught.value)
    assert "norms={'conv1': 'bn1', ...}" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())
    norms = {"conv1": "bn1", "conv2": "bn2"}
    qdeq.dequantize_state_dict(state, into=poisoned(fresh), norms=norms)
    with torch.no_grad():
        expected = qdeq.dequantize_model(model)(x)
        assert torch.allclose(fresh.eval()(x), expected, atol=1e-5)


def test_not_strict_says_which_norms_were_left():
    model, _ = int8(Points, traced=False)
    _, report = qdeq.dequantize_state_dict(model.state_dict(), into=Points(traced=False), strict=False)
    assert "may have been folded into conv1 or conv2 or fc1: state which by norms=" in report.notes["bn1"]


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_the_folded_bias_arrives_under_another_prefix(backend):
    """Also on qnnpack, which stores zeros for the layers without a bias."""
    model, _ = int8(Dense, backend)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    fresh = poisoned(Dense())
    qdeq.dequantize_state_dict(state, into=fresh)
    assert torch.equal(bits(fresh.norm0.bias), bits(model.conv0.bias()))


def test_wrong_statements_are_refused():
    model, _ = int8(Dense)
    with pytest.raises(qdeq.QdeqValueError, match="dequantize_state_dict: into: norms: expected paths of batch norms"):
        qdeq.dequantize_state_dict(model.state_dict(), into=Dense(), norms={"conv0": "nowhere"})
    with pytest.raises(qdeq.QdeqValueError, match="norms: expected None without into"):
        qdeq.dequantize_state_dict(model.state_dict(), norms={"conv0": "norm0"})
