"""Batch norms: folded as torch folds them; those that come back (``unfold_bn=``) are identities to the last bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import qdeq
from qdeq.layers.batch_norm import NormValues, fill_identity, fold_batch_norm
from tests.helpers.models import SmallVGG, assert_same_bits, bits, quantize, small_vgg, tq
from tests.helpers.norm_models import Points, trained
from tests.helpers.saturation import assert_same_on_every_cpu
from tools.models import engine

NORMS = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def any_float32(*shape: int) -> torch.Tensor:
    """Random bit patterns: every exponent, no NaN and no infinity, nothing so large that a sum with it overflows."""
    values = torch.randint(-(2**31), 2**31, shape, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return torch.where(values.isfinite() & (values.abs() < 1e30) & (values.abs() > 1e-30), values, torch.ones(()))


@pytest.mark.parametrize("dims", NORMS)
@pytest.mark.parametrize(
    ("eps", "knows"),
    [(eps, True) for eps in (1e-12, 1e-7, 1e-5, 1e-3, 0.1, 0.9)] + [(e, False) for e in (1e-7, 1e-5, 1e-3)],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_identity_to_the_bit(dims, eps, knows, channels_last):
    torch.manual_seed(0)
    norm = NORMS[dims](24, eps=eps).eval()
    fill_identity(norm, eps if knows else None)
    x = any_float32(7, 24, *[3, 5, 4][: dims - 2])
    if channels_last and dims == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert_same_bits(norm(x), x)
        norm.bias.uniform_(-3, 3)
        shifted = x + norm.bias.reshape(-1, *[1] * (dims - 2))
        assert_same_bits(norm(x), shifted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_identity_in_other_dtypes(dtype):
    norm = nn.BatchNorm2d(24, eps=1e-5, dtype=dtype).eval()
    fill_identity(norm, 1e-5)
    x = torch.randn(7, 24, 3, 5).to(dtype)
    assert torch.equal(norm(x), x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_folding_agrees_with_torch(transposed, bias, affine):
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer, norm = kind(4, 6, 3, bias=bias), nn.BatchNorm2d(6, affine=affine).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    weight, shift = fold_batch_norm(
        layer.weight.detach(),
        None if layer.bias is None else layer.bias.detach(),
        NormValues.of(norm),
        transposed=transposed,
    )
    theirs = torch.nn.utils.fusion.fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias, transposed
    )
    assert_same_bits(weight, theirs[0])
    assert torch.allclose(shift, theirs[1], atol=1e-6)  # torch multiplies from the left, one rounding apart
    values = NormValues.of(norm)
    x = torch.randn(2, 6, 5, 5)
    assert torch.allclose(norm(x), x * values.factor.view(-1, 1, 1) + values.shift.view(-1, 1, 1), atol=1e-5)


def test_wrong_eps_is_no_identity():
    # What the two forms are for: 1 - eps is exact for its own eps only.
    norm = nn.BatchNorm2d(3, eps=1e-3).eval()
    fill_identity(norm, 1e-5)
    x = torch.randn(2, 3, 4, 4)
    assert float((norm(x) / x - 1).abs().max().detach()) > 1e-4


@pytest.mark.parametrize("unfold_bn", [True, 1e-5])
@pytest.mark.parametrize("mode", ["drop", "clamp", "fake_quant"])
@pytest.mark.parametrize("bias", [True, False])
def test_norms_come_back_in_their_places(unfold_bn, mode, bias):
    model = small_vgg(bn=True, conv_bias=bias)
    rebuilt, report = qdeq.dequantize_model(model, unfold_bn=unfold_bn, activations=mode, return_report=True)
    assert [type(layer).__name__ for layer in rebuilt.features[:3]] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert not rebuilt.features[1].training
    folded = qdeq.dequantize_model(model, activations=mode)
    # The folded bias stays where the layer had one of its own, and becomes the norm's where it had none.
    has_bias, without = (rebuilt.features[0], rebuilt.features[1]) if bias else rebuilt.features[1::-1]
    assert_same_bits(has_bias.bias, folded.features[0].bias)
    assert not without.bias.any() if bias else without.bias is None
    assert_same_bits(rebuilt.features[0].weight, folded.features[0].weight)
    entry = next(entry for entry in report.entries if entry.source == "features.0.bias")
    assert entry.target == ("features.0.bias" if bias else "features.1.bias")
    assert "any eps" in report.notes["features.1"][0] or unfold_bn is not True
    x = model.example()
    assert torch.equal(rebuilt(x), folded(x)) if bias else torch.allclose(rebuilt(x), folded(x), atol=1e-5)
    if mode == "fake_quant":
        assert report.uncovered == []
        assert_same_on_every_cpu(model, x)
        assert float((rebuilt(x) == model(x)).float().mean()) >= 0.99


# torch warns about its own TypedStorage whenever it loads a quantized tensor.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("way", ["live", "copied", "saved", "QAT"])
def test_keys_are_those_of_the_class(bias, way):
    model = small_vgg_qat(conv_bias=bias) if way == "QAT" else small_vgg(bn=True, conv_bias=bias)
    if way == "copied":
        model = copy.deepcopy(model)
    if way == "saved":
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        model = small_vgg(bn=True, conv_bias=not bias)
        model.load_state_dict(torch.load(file))
    rebuilt = qdeq.dequantize_model(model, unfold_bn=True)
    fresh = SmallVGG(bn=True, conv_bias=bias).eval()
    for tensor in fresh.state_dict().values():
        tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor.fill_(-1)
    fresh.load_state_dict(rebuilt.state_dict(), strict=True)
    x = fresh.example()
    assert torch.equal(bits(fresh(x)), bits(rebuilt(x)))


def small_vgg_qat(*, conv_bias):
    torch.manual_seed(3)
    model = SmallVGG(bn=True, conv_bias=conv_bias).train()
    tq.fuse_modules_qat(model, model.fuse_groups(), inplace=True)
    model.qconfig = tq.get_default_qat_qconfig("fbgemm")
    tq.prepare_qat(model, inplace=True)
    model(model.example()).sum().backward()
    with engine("fbgemm"):
        return tq.convert(model.eval())


def test_a_norm_whose_place_cannot_be_proven_is_reported():
    model = trained(Points(traced=False))
    x = model.example()
    model = quantize(model, x, groups=[list(group) for group in model.groups])
    rebuilt, report = qdeq.dequantize_model(model, unfold_bn=True, return_report=True)
    assert "no BatchNorm put back behind it: its owner's forward cannot be traced" in report.notes["conv1"][0]
    assert type(rebuilt.bn1) is nn.Identity


def test_no_norm_comes_back_behind_a_layer_without_a_bias():
    """Folding gives a layer a bias: an Identity behind one without it is the class's own."""
    model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 4, 1, bias=False), nn.Identity(), tq.DeQuantStub())
    rebuilt = qdeq.dequantize_model(quantize(model, torch.randn(2, 3, 4, 4)), unfold_bn=True)
    assert type(rebuilt[2]) is nn.Identity


def test_norm_after_a_layer_without_activation_and_in_1d():
    torch.manual_seed(2)
    model = nn.Sequential(
        tq.QuantStub(), nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(48, 4), tq.DeQuantStub()
    )
    model = quantize(model, torch.randn(16, 3, 8), groups=[["1", "2"]])
    rebuilt = qdeq.dequantize_model(model, unfold_bn=True, activations="fake_quant")
    assert isinstance(rebuilt[2], nn.BatchNorm1d)
    # The rounding follows the norm: it is the output of the folded layer.
    assert list(rebuilt[2]._modules) == ["activation_post_process"]
    assert not rebuilt[1]._modules
    x = torch.randn(16, 3, 8)
    assert_same_on_every_cpu(model, x)
    assert float((rebuilt(x) == model(x)).float().mean()) >= 0.98


def test_nothing_to_unfold_changes_nothing():
    model = small_vgg()
    assert str(qdeq.dequantize_model(model, unfold_bn=True)) == str(qdeq.dequantize_model(model))


@pytest.mark.parametrize(
    ("value", "error"),
    [("yes", qdeq.QdeqTypeError), (None, qdeq.QdeqTypeError), (2.0, qdeq.QdeqValueError), (-1e-5, qdeq.QdeqValueError)],
)
def test_bad_values_are_named(value, error):
    with pytest.raises(error, match="unfold_bn: expected"):
        qdeq.dequantize_model(small_vgg(bn=True), unfold_bn=value)


def test_float16_cannot_hold_the_statistics():
    with pytest.raises(qdeq.QdeqValueError, match="float16"):
        qdeq.dequantize_model(small_vgg(bn=True), unfold_bn=True, dtype=torch.float16)
