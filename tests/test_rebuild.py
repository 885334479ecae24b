from __future__ import annotations

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qdeq
from qdeq import QdeqError, dequantize_model
from qdeq.layers.fused import ConvReLU2d, LinearReLU
from qdeq.sources.eager.mappings import RULES
from tests.helpers.models import SmallVGG, assert_same_bits, frozen_state, quantize, small_vgg, tq

FORMS = pytest.mark.parametrize(
    ("bn", "fuse"), [(False, False), (False, True), (True, True)], ids=["plain", "fused", "bn-fused"]
)


def weights_of(model: nn.Module):
    for path, module in model.named_modules():
        if callable(getattr(module, "weight", None)):
            yield path, module.weight(), module.bias()


@FORMS
def test_every_weight_and_bias_has_the_bits_torch_gives(bn, fuse):
    int8 = small_vgg(bn=bn, fuse=fuse)
    floats = dict(dequantize_model(int8).named_parameters())
    found = list(weights_of(int8))
    assert len(found) == 4
    for path, weight, bias in found:
        assert_same_bits(floats.pop(f"{path}.weight"), weight.dequantize())
        assert_same_bits(floats.pop(f"{path}.bias"), bias)
    assert not floats


@FORMS
def test_the_float_model_computes_what_the_int8_model_stands_for(bn, fuse):
    int8 = small_vgg(bn=bn, fuse=fuse)
    x = torch.randn(8, 3, 16, 16)
    outputs, logits = int8(x), dequantize_model(int8)(x)
    # A lost ReLU, bias or Linear weight moves the logits by their whole range; rounding moves them by a few percent.
    assert (outputs - logits).abs().max() < 0.1 * (outputs.max() - outputs.min())


def test_classes_and_names_are_those_of_the_float_architecture():
    rebuilt = dequantize_model(small_vgg())
    reference = SmallVGG()
    assert list(rebuilt.state_dict()) == list(reference.state_dict())
    for name, module in reference.named_modules():
        if name not in ("", "quant", "dequant"):
            assert type(rebuilt.get_submodule(name)) is type(module), name
    assert type(rebuilt.quant) is nn.Identity
    assert type(rebuilt.dequant) is nn.Identity
    reference.load_state_dict(rebuilt.state_dict())


def test_the_relu_of_a_bn_fused_conv_goes_to_the_last_of_the_two_places():
    rebuilt = dequantize_model(small_vgg(bn=True))
    assert [type(m) for m in rebuilt.features[:4]] == [nn.Conv2d, nn.Identity, nn.ReLU, nn.MaxPool2d]


class Residual(nn.Module):
    """Its Identity comes right after the conv, but runs on something else."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()
        self.skip = nn.Identity()
        self.dequant = tq.DeQuantStub()

    def forward(self, x):
        x = self.quant(x)
        return self.dequant(self.conv(x)) + self.dequant(self.skip(x))


def test_an_identity_that_runs_on_other_values_does_not_get_the_relu():
    torch.manual_seed(1)
    model = Residual().eval()
    model.conv = torch.ao.nn.intrinsic.ConvReLU2d(model.conv, nn.ReLU())
    del model.relu
    quantize(model, torch.randn(4, 3, 8, 8))
    rebuilt, report = dequantize_model(model, return_report=True)
    assert type(rebuilt.skip) is nn.Identity
    assert type(rebuilt.conv) is ConvReLU2d
    assert "ReLU kept inside ConvReLU2d" in report.notes["conv"][-1]
    x = torch.randn(2, 3, 8, 8)
    assert_same_bits(rebuilt(x), F.relu(F.conv2d(x, rebuilt.conv.weight, rebuilt.conv.bias, padding=1)) + x)
    assert set(rebuilt.state_dict()) == {"conv.weight", "conv.bias"}


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.lin = nn.Linear(4, 4)
        self.relu = nn.ReLU()
        self.calls = []

    def forward(self, x):
        self.calls.append(x.shape)
        x = self.relu(self.lin(self.quant(x)))
        if x.int_repr().sum() < 0 if x.is_quantized else False:
            raise AssertionError
        return self.dequant(x)


def test_a_forward_that_cannot_be_traced_keeps_the_activation_with_its_layer():
    model = Untraceable()
    quantize(model, torch.randn(4, 4), groups=[["lin", "relu"]])
    before = list(model.calls)
    rebuilt = dequantize_model(model)
    assert type(rebuilt.lin) is LinearReLU
    assert model.calls == before, "tracing ran on the user's own module"
    assert (rebuilt(torch.randn(16, 4)) >= 0).all()


class Deep(nn.Module):
    """Registration order is not execution order; the layers sit in a ModuleList that the owner runs."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])
        self.acts = nn.ModuleList([nn.ReLU(), nn.ReLU()])

    def forward(self, x):
        x = self.quant(x)
        for conv, act in zip(self.convs, self.acts, strict=True):
            x = act(conv(x))
        return self.dequant(x)


def test_slots_are_found_by_execution_not_by_registration():
    model = Deep()
    quantize(model, torch.randn(4, 3, 4, 4), groups=[["convs.0", "acts.0"], ["convs.1", "acts.1"]])
    rebuilt = dequantize_model(model)
    assert [type(m) for m in rebuilt.convs] == [nn.Conv2d] * 2
    assert [type(m) for m in rebuilt.acts] == [nn.ReLU] * 2


def storages(model: nn.Module) -> set[int]:
    tensors = [t for _, t in [*model.named_parameters(), *model.named_buffers()]]
    for _, weight, bias in weights_of(model):
        tensors += [weight, bias]
    return {t.untyped_storage().data_ptr() for t in tensors if t is not None and t.numel()}


def test_nothing_aliases_the_int8_model():
    int8 = small_vgg()
    rebuilt = dequantize_model(int8)
    assert not storages(int8) & {p.untyped_storage().data_ptr() for p in rebuilt.parameters()}
    before = int8(torch.ones(1, 3, 16, 16))
    with torch.no_grad():
        for parameter in rebuilt.parameters():
            parameter.fill_(7)
    assert torch.equal(int8(torch.ones(1, 3, 16, 16)), before)


def test_parameters_are_leaves_contiguous_and_trainable():
    for name, parameter in dequantize_model(small_vgg()).named_parameters():
        assert parameter.is_leaf, name
        assert parameter.requires_grad, name
        assert parameter.is_contiguous(), name


def test_the_int8_model_is_untouched_and_the_random_state_too():
    int8 = small_vgg(bn=True)
    state, rng = frozen_state(int8), torch.get_rng_state()
    dequantize_model(int8, return_report=True)
    assert frozen_state(int8) == state
    assert torch.equal(torch.get_rng_state(), rng), "something was initialised at random"


@pytest.mark.parametrize("training", [False, True])
def test_rebuilt_modules_take_the_training_mode_of_their_parent(training):
    int8 = small_vgg()
    assert int8.classifier[0].training, "torch leaves converted leaves in training mode"
    int8.training = training
    int8.features.training = training
    int8.classifier.training = training
    rebuilt = dequantize_model(int8)
    assert rebuilt.classifier[2].training is training, "Dropout"
    assert rebuilt.features[0].training is training


def test_a_missing_weight_cannot_hide(monkeypatch):
    """A builder that forgets a tensor is an error, whatever the seed of the fresh network."""
    int8 = small_vgg()
    kind = type(int8.classifier[3])
    rule = RULES[kind]

    def forgetful(module, path, context):
        layer = rule.describe(module, path, context)
        layer.parts = [part for part in layer.parts if part.name != "weight"]
        return layer

    monkeypatch.setitem(RULES, kind, replace(rule, describe=forgetful))
    with pytest.raises(QdeqError, match=r"classifier\.3\.weight"):
        dequantize_model(int8)


def test_a_zeroed_bias_and_an_unwritten_parameter_cannot_hide(monkeypatch):
    int8 = small_vgg()
    kind = type(int8.classifier[3])

    rule = RULES[kind]

    def no_weight(module, path, context):
        layer = rule.describe(module, path, context)
        layer.read = [source.held for part in layer.parts for source in part.sources]
        layer.parts = [part for part in layer.parts if part.name != "weight"]
        return layer

    monkeypatch.setitem(RULES, kind, replace(rule, describe=no_weight))
    with pytest.raises(QdeqError, match=r"unwritten parameters \['classifier\.3\.weight'\]"):
        dequantize_model(int8)


def test_shared_modules_stay_shared_and_plain_attributes_are_kept():
    int8 = small_vgg()
    int8.alias = int8.classifier
    int8.names = {"classes": ["a", "b"]}
    int8.by_hand = [int8.classifier[3]]
    int8.classifier[3].tag = "head"
    rebuilt = dequantize_model(int8)
    assert rebuilt.alias is rebuilt.classifier
    assert rebuilt.by_hand[0] is rebuilt.classifier[3]
    assert rebuilt.names == {"classes": ["a", "b"]}
    assert rebuilt.names is not int8.names
    assert rebuilt.classifier[3].tag == "head"


def test_the_root_itself_may_be_quantized():
    layer = small_vgg().classifier[3]
    rebuilt, report = dequantize_model(layer, return_report=True)
    assert type(rebuilt) is nn.Linear
    assert_same_bits(rebuilt.weight, layer.weight().dequantize())
    assert [entry.target for entry in report.entries] == ["weight", "bias"]


def test_layers_without_bias_and_other_dimensions():
    torch.manual_seed(3)
    for conv, shape in ((nn.Conv1d(4, 6, 3, bias=False), (2, 4, 9)), (nn.Conv3d(4, 6, (1, 2, 3)), (2, 4, 5, 5, 5))):
        model = quantize(nn.Sequential(tq.QuantStub(), conv, tq.DeQuantStub()), torch.randn(shape))
        rebuilt = dequantize_model(model)
        assert (rebuilt[1].bias is None) == (conv.bias is None)
        assert_same_bits(rebuilt[1].weight, model[1].weight().dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_applies_to_every_floating_point_tensor(dtype):
    int8 = small_vgg()
    int8.norm = nn.BatchNorm1d(3)
    exact, rounded = dequantize_model(int8).state_dict(), dequantize_model(int8, dtype=dtype).state_dict()
    for name, tensor in rounded.items():
        if exact[name].is_floating_point():
            assert tensor.dtype == dtype, name
            assert torch.equal(tensor, exact[name].to(dtype)), name
        else:
            assert tensor.dtype == exact[name].dtype


# torch warns about its own TypedStorage whenever it loads a quantized tensor.
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_whole_model_that_torch_loaded_is_rebuilt():
    """torch leaves the convolutions of a pickled int8 model without what nn.Module.__init__ sets up."""
    int8 = small_vgg(bn=True)
    buffer = io.BytesIO()
    torch.save(int8, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert "_modules" not in vars(loaded.features[0])
    before = set(vars(loaded.features[0]))
    rebuilt, report = dequantize_model(loaded, activations="fake_quant", return_report=True)
    wanted, wanted_report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert str(rebuilt) == str(wanted)
    for name, value in wanted.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], value), name
    assert report.to_dict() == wanted_report.to_dict()
    assert set(vars(loaded.features[0])) == before, "the source is as it was"


def test_pickled_copies_of_held_activations_load():
    torch.manual_seed(1)
    model = Untraceable()
    quantize(model, torch.randn(4, 4), groups=[["lin", "relu"]])
    rebuilt = dequantize_model(model)
    again = copy.deepcopy(rebuilt)
    assert_same_bits(again.lin.weight, rebuilt.lin.weight)


def test_the_public_name_is_the_function():
    assert qdeq.dequantize_model is dequantize_model
