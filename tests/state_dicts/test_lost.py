"""What torch does not save, or saves wrongly: constants of activations and fbgemm's direct transposed convolution."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

import qdeq
from tests.helpers.models import assert_same_bits, engine


def static(*layers: nn.Module, shape: tuple[int, ...], backend: str = "fbgemm") -> nn.Module:
    torch.manual_seed(71)
    model = nn.Sequential(tq.QuantStub(), *layers, tq.DeQuantStub()).eval()
    with engine(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's deprecation notices
        model.qconfig = tq.default_qconfig
        prepared = tq.prepare(model)
        prepared(torch.randn(shape))
        return tq.convert(prepared)


def save(model, path, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "script":
            torch.jit.save(torch.jit.script(model), path)
        else:
            torch.save(
                model if "whole" in form else model.state_dict(),
                path,
                _use_new_zipfile_serialization="legacy" not in form,
            )
    return qdeq.open(path)


# Constants of activations


def elu_pair(alpha=1.0):
    return nn.Sequential(nn.Identity(), nn.Linear(4, 4), nn.ELU(alpha), nn.LeakyReLU(0.2), nn.PReLU(4), nn.Identity())


@pytest.fixture(scope="module")
def elu():
    return static(nn.Linear(4, 4), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.PReLU(4), shape=(3, 4))


@pytest.mark.parametrize("form", ["live", "state_dict", "legacy"])
def test_elu_and_prelu_are_not_in_a_state_dict(elu, form, tmp_path):
    source = elu.state_dict() if form == "live" else save(elu, tmp_path / "a.pt", form)
    target = elu_pair(0.5)
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(qdeq.QdeqValueError, match=r"torch saves no") as caught:
        qdeq.dequantize_state_dict(source, into=target)
    assert "slopes of a quantized PReLU, so its state dict does not hold 4.weight" in str(caught.value)
    assert "alpha of a quantized ELU, so its state dict does not hold 2.alpha" in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    _, report = qdeq.dequantize_state_dict(source, into=target, strict=False)
    assert "0.5 of the float class kept" in report.notes["2.alpha"][0]
    assert "0.2 of the float class kept" in report.notes["3.negative_slope"][0]
    assert "not written" in report.notes["4.weight"][0]


def test_what_the_user_knows_can_be_put_into_the_state_dict(elu):
    state = {**elu.state_dict(), "2.alpha": 0.5, "4.weight": torch.full((4,), 0.3)}
    target = elu_pair(0.5)
    qdeq.dequantize_state_dict(state, into=target)
    assert torch.equal(target[4].weight, torch.full((4,), 0.3))
    state["2.alpha"] = 0.25
    with pytest.raises(qdeq.QdeqValueError, match=r"2.alpha: expected 0.25, as in the source, got 0.5"):
        qdeq.dequantize_state_dict(state, into=target)


def test_a_script_has_the_slopes_but_its_constants_are_code(elu, tmp_path):
    archive = save(elu, tmp_path / "a.pt", "script")
    with pytest.raises(qdeq.QdeqValueError, match=r"nothing is written to: 2.alpha\. torch saves no alpha"):
        qdeq.dequantize_state_dict(archive, into=elu_pair(0.5))


@pytest.mark.parametrize("form", ["whole", "legacy_whole"])
def test_a_whole_model_has_them(elu, form, tmp_path):
    archive = save(elu, tmp_path / "a.pt", form)
    assert archive.constants == {"2.alpha": 0.5, "3.negative_slope": 0.2}
    target = elu_pair(0.5)
    qdeq.dequantize_state_dict(archive, into=target)
    assert_same_bits(target[4].weight, elu[4].weight.dequantize())
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(target(x), qdeq.dequantize_model(elu)(x))
    with pytest.raises(qdeq.QdeqValueError, match=r"2.alpha: expected 0.5, as in the source, got 1.0"):
        qdeq.dequantize_state_dict(archive, into=elu_pair(1.0))


def test_activations_that_were_never_quantized_are_no_business_of_ours():
    model = nn.Sequential(nn.Linear(4, 4), nn.ELU(0.5))
    state = tq.quantize_dynamic(copy.deepcopy(model), {nn.Linear}).state_dict()
    qdeq.dequantize_state_dict(state, into=model)


# fbgemm's direct transposed convolution

DIRECT = {"stride 1": {}, "stride 2": {"stride": 2}, "output padding": {"stride": 2, "output_padding": 1}}
RIGHT = {"padding": {"padding": 1}, "groups": {"groups": 8}, "stride 3": {"stride": 3}, "dilation": {"dilation": 2}}
FORMS = ["live", "state_dict", "legacy", "whole", "script"]


def upsampler(options, kernel=(2, 3)):
    torch.manual_seed(73)
    return nn.ConvTranspose2d(16, 64 if "groups" in options else 8, kernel, **options)


def transposed(options, kernel=(2, 3), backend="fbgemm"):
    return static(upsampler(options, kernel), shape=(1, 16, 8, 8), backend=backend)


def trained(options, model):
    """The weight that went into :func:`transposed`, rounded as the model says; torch's ``weight()`` may be garbage."""
    declared = model[1].weight()
    weight = upsampler(options).weight.detach()
    return torch.quantize_per_tensor(weight, declared.q_scale(), declared.q_zero_point(), torch.qint8).dequantize()


def opened(model, form, path):
    return model.state_dict() if form == "live" else save(model, path, form)


def target_for(options):
    layer = upsampler(options)
    nn.init.constant_(layer.weight, 7.0)
    return nn.Sequential(nn.Identity(), layer)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", DIRECT.values(), ids=DIRECT)
def test_a_lost_weight_is_a_warning_and_an_error_into_its_class(options, form, tmp_path):
    source = opened(transposed(options), form, tmp_path / "a.pt")
    _, report = qdeq.dequantize_state_dict(source)
    assert "uninitialized memory" in report.notes["1.weight"][0]
    assert "recover_direct_conv=True" in report.notes["1.weight"][0]
    if form != "live":
        _, of_weights = qdeq.dequantize_state_dict(dict(source))
        assert "uninitialized memory" in of_weights.notes["1.weight"][0]
        assert any(text.startswith("1.weight: ") for text in source.warnings)
        assert any("uninitialized" in text for text in source.report.notes[""])
    target = target_for(options)
    before = target[1].weight.detach().clone()
    with pytest.raises(qdeq.QdeqValueError, match=r"into: 1.weight: .*uninitialized memory.*recover_direct_conv=True"):
        qdeq.dequantize_state_dict(source, into=target)
    assert torch.equal(target[1].weight, before)
    _, report = qdeq.dequantize_state_dict(source, into=target, strict=False)
    assert "uninitialized" in report.notes["1.weight"][0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", RIGHT.values(), ids=RIGHT)
def test_other_transposed_convolutions_are_loaded(options, form, tmp_path):
    """Only the weight's shape is known in a bare state dict, so it may be warned of there; never with its class."""
    model = transposed(options)
    source = opened(model, form, tmp_path / "a.pt")
    target = target_for(options)
    _, report = qdeq.dequantize_state_dict(source, into=target)
    assert "1.weight" not in report.notes
    assert_same_bits(target[1].weight, trained(options, model))
    if form in ("whole", "script"):
        assert source.warnings == []


@pytest.mark.parametrize("kernel", [(3, 2), (2, 7), (1, 2)])
def test_other_kernels_are_not_suspected(kernel):
    _, report = qdeq.dequantize_state_dict(transposed({}, kernel).state_dict())
    assert report.notes == {}


@pytest.mark.parametrize("backend", ["fbgemm", "x86", "onednn", "qnnpack"])
def test_plain_convolutions_of_the_same_shape_are_not_suspected(backend, tmp_path):
    model = static(nn.Conv2d(16, 8, (2, 3)), shape=(1, 16, 8, 8), backend=backend)
    _, report = qdeq.dequantize_state_dict(model.state_dict())
    assert report.notes == {}
    assert save(model, tmp_path / "a.pt", "state_dict").warnings == []


@pytest.mark.parametrize("backend", ["onednn", "qnnpack"])
def test_engines_that_save_the_weight_right_are_not_suspected(backend):
    model = transposed({}, backend=backend)
    target = target_for({})
    _, report = qdeq.dequantize_state_dict(model.state_dict(), into=target)
    assert report.notes == {}
    assert_same_bits(target[1].weight, trained({}, model))
