"""What surrounds the quantized modules: containers, sharing, hooks, attributes, neighbours that are hard to copy."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from qdeq import QdeqError, dequantize_model
from tests.helpers.models import assert_same_bits, quantize, small_vgg
from tests.sources.eager.classes.helpers import build


def linear(inputs: int = 4, outputs: int = 4) -> nnq.Linear:
    return build(nnq.Linear, inputs, outputs, backend="fbgemm")


def state_of(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


class Blocks(nn.Module):
    """A user's own float class around quantized children, in every kind of container."""

    labels = ("class", "attribute")

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.ModuleList([linear(), nn.ReLU(), linear()])
        self.heads = nn.ModuleDict({"a": linear(), "b": nn.Linear(4, 4)})
        self.chain = nn.Sequential(linear(), nn.Sequential(linear()))
        self.config = {"width": 4, "names": ["x"]}

    def forward(self, x):
        for item in self.items:
            x = item(x)
        return self.heads["a"](self.chain(x))


def test_containers_and_a_users_own_class():
    model = Blocks()
    rebuilt = dequantize_model(model)
    assert type(rebuilt) is Blocks
    assert [type(m) for m in rebuilt.items] == [nn.Linear, nn.ReLU, nn.Linear]
    assert {name: type(m) for name, m in rebuilt.heads.items()} == {"a": nn.Linear, "b": nn.Linear}
    assert type(rebuilt.chain[1][0]) is nn.Linear
    assert rebuilt.config == model.config
    assert rebuilt.config["names"] is not model.config["names"]
    assert_same_bits(rebuilt.heads["b"].weight, model.heads["b"].weight)
    assert rebuilt(torch.randn(2, 4)).shape == (2, 4)


def test_a_module_used_in_two_places_stays_one():
    shared = linear()
    model = nn.ModuleDict({"a": nn.Sequential(shared), "b": nn.ModuleList([shared]), "c": linear()})
    rebuilt, report = dequantize_model(model, return_report=True)
    assert rebuilt["a"][0] is rebuilt["b"][0]
    assert rebuilt["a"][0] is not rebuilt["c"]
    assert [entry.target for entry in report.entries] == ["a.0.weight", "a.0.bias", "c.weight", "c.bias"]


class Hidden(nn.Module):
    """Quantized modules that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.known = linear()
        self.blocks = [linear(), [self.known, nn.Sequential(linear())]]
        self.table = {"x": linear()}

    def forward(self, x):
        return self.table["x"](self.blocks[1][1](self.blocks[0](self.known(x))))


def test_modules_in_plain_lists_and_dicts():
    model = Hidden()
    rebuilt, report = dequantize_model(model, return_report=True)
    assert type(rebuilt.blocks[0]) is nn.Linear
    assert rebuilt.blocks[1][0] is rebuilt.known
    assert type(rebuilt.blocks[1][1][0]) is nn.Linear
    assert type(rebuilt.table["x"]) is nn.Linear
    assert_same_bits(rebuilt.blocks[0].weight, model.blocks[0].weight().dequantize())
    assert set(report.replaced) == {"known", "blocks[0]", "blocks[1][1].0", "table['x']"}
    assert rebuilt(torch.randn(2, 4)).requires_grad


def test_a_module_inside_another_object_is_named_not_copied():
    class Holder:
        def __init__(self, module):
            self.module = module

    model = nn.Sequential(linear())
    model.holder = Holder(linear())
    with pytest.raises(QdeqError, match=r"quantized\.Linear.*inside another object.*Register"):
        dequantize_model(model)


def test_parametrized_and_weight_normed_neighbours():
    torch.manual_seed(1)
    parametrized = parametrizations.orthogonal(nn.Linear(4, 4))
    spectral = parametrizations.spectral_norm(nn.Linear(4, 4))
    model = nn.Sequential(linear(), parametrized, spectral)
    rebuilt = dequantize_model(model)
    assert list(rebuilt[1].state_dict()) == list(parametrized.state_dict())
    x = torch.randn(2, 4)
    torch.testing.assert_close(rebuilt[1](x), parametrized(x))
    assert (
        rebuilt[1].parametrizations.weight.original.data_ptr()
        != parametrized.parametrizations.weight.original.data_ptr()
    )


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_old_weight_norm_and_kept_activations_do_not_stop_the_copy():
    """Both leave a tensor with a history in a plain attribute, which deepcopy refuses."""
    normed = weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(linear(), normed)
    model.last = [normed(torch.randn(2, 4))]
    rebuilt = dequantize_model(model)
    x = torch.randn(2, 4)
    torch.testing.assert_close(rebuilt[1](x), normed(x))
    rebuilt[1](x).sum().backward()
    assert rebuilt[1].weight_g.grad is not None
    assert torch.equal(rebuilt.last[0], model.last[0])


class NoCopy(nn.Linear):
    def __copy__(self):
        raise TypeError("this module refuses copy.copy")


def test_a_neighbour_that_refuses_copy():
    model = nn.Sequential(linear(), NoCopy(4, 4))
    assert type(dequantize_model(model)[1]) is NoCopy


def test_hooks_are_kept_or_reported():
    calls = []
    model = small_vgg()
    layer = model.classifier[3]
    layer.register_forward_hook(lambda module, args, output: calls.append(("after", type(module))))
    layer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(("before", type(module))), with_kwargs=True
    )
    layer.register_full_backward_hook(lambda module, *_: calls.append(("back", type(module))))
    layer.register_state_dict_post_hook(lambda *_: None)
    model.features[0].register_forward_hook(lambda *_: calls.append(("conv", None)))
    rebuilt, report = dequantize_model(model, return_report=True)
    rebuilt(torch.randn(2, 3, 16, 16)).sum().backward()
    assert calls == [("conv", None), ("before", nn.Linear), ("after", nn.Linear), ("back", nn.Linear)]
    assert "1 forward hooks kept" in report.notes["classifier.3"]
    assert any("state dict" in note and "not kept" in note for note in report.notes["classifier.3"])
    assert any("before the ReLU" in note for note in report.notes["features.0"])


def test_a_hook_bound_to_the_model_is_bound_to_the_copy():
    class Owner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = linear()
            self.count = 0
            self.layer.register_forward_hook(self.seen)

        def seen(self, *_):
            self.count += 1

        def forward(self, x):
            return self.layer(x)

    model = Owner()
    rebuilt = dequantize_model(model)
    rebuilt(torch.randn(2, 4))
    assert (model.count, rebuilt.count) == (0, 1)


def test_attributes_of_quantized_modules_follow_the_copy():
    model = nn.Sequential(linear(), linear())
    model[0].note = {"from": "user"}
    model[0].friend = [model[1]]
    rebuilt = dequantize_model(model)
    assert rebuilt[0].note == {"from": "user"}
    assert rebuilt[0].friend[0] is rebuilt[1]


def test_data_parallel():
    model = nn.DataParallel(nn.Sequential(linear()))
    rebuilt = dequantize_model(model)
    assert type(rebuilt) is nn.DataParallel
    assert list(rebuilt.state_dict()) == ["module.0.weight", "module.0.bias"]
    assert rebuilt(torch.randn(2, 4)).shape == (2, 4)


def test_float_parts_are_copied_as_they_are():
    torch.manual_seed(2)
    model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 4, 3), tq.DeQuantStub(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    for index in (3, 4):
        model[index].qconfig = None
    model.eval()
    model.qconfig = tq.default_qconfig
    tq.prepare(model, inplace=True)
    model(torch.randn(2, 3, 8, 8))
    tq.convert(model, inplace=True)
    model[4].weight.requires_grad_(False)
    rebuilt = dequantize_model(model)
    assert torch.equal(rebuilt[4].weight, model[4].weight)
    assert not rebuilt[4].weight.requires_grad
    assert torch.equal(rebuilt[3].running_var, model[3].running_var)
    x = torch.randn(2, 3, 8, 8)
    assert (rebuilt(x) - model(x)).abs().max() < 0.1


def test_no_packed_weight_is_deepcopied(monkeypatch):
    """A copy doubles the memory, and for some shapes torch's copy is garbage."""

    def refuse(self, memo):
        raise AssertionError("a packed weight was copied")

    model = Hidden()
    model.vgg = small_vgg()
    monkeypatch.setattr(nnq.Linear, "__deepcopy__", refuse, raising=False)
    monkeypatch.setattr(nnq.modules.linear.LinearPackedParams, "__deepcopy__", refuse, raising=False)
    monkeypatch.setattr(torch.ScriptObject, "__deepcopy__", refuse, raising=False)
    dequantize_model(model)


class TestBadInput:
    def test_every_offender_is_named_and_the_source_stays_as_it_was(self):
        class Mine(nnq.Linear):
            pass

        model = nn.ModuleDict({"good": linear(), "narrow": linear(8, 4), "empty": linear(), "mine": Mine(2, 2)})
        model["narrow"].in_features = 5
        del model["empty"]._packed_params._packed_params
        keys = {name: set(module.__dict__) for name, module in model.named_modules()}
        good = state_of(model["good"])
        with pytest.raises(QdeqError) as info:
            dequantize_model(model)
        message = str(info.value)
        for part in ("3 problems", "- narrow.weight: expected", "(4, 5)", "(4, 8)", "- empty: expected", "mine is "):
            assert part in message, part
        assert "good" not in message
        assert state_of(model["good"]) == good
        assert {name: set(module.__dict__) for name, module in model.named_modules()} == keys

    @pytest.mark.parametrize(("attribute", "value"), [("out_channels", 6), ("kernel_size", (5, 5)), ("groups", 2)])
    def test_a_convolution_that_declares_another_shape(self, attribute, value):
        module = build(nnq.Conv2d, 4, 4, 3, backend="fbgemm")
        setattr(module, attribute, value)
        with pytest.raises(QdeqError, match=r"^0\.(weight|bias): expected"):
            dequantize_model(nn.Sequential(module))

    def test_a_half_converted_model(self):
        model = nn.Sequential(linear(), nn.Linear(4, 4), nn.Linear(4, 4))
        for index in (1, 2):
            model[index].qconfig = tq.default_qconfig
        tq.prepare(model, inplace=True)
        with pytest.raises(QdeqError, match=r"half converted.*1\.activation_post_process.*2\.activation_post_process"):
            dequantize_model(model)

    def test_a_memory_error_in_a_builder_names_the_module(self, monkeypatch):
        from qdeq.sources.eager.mappings import RULES

        def broken(module, path, context):
            raise RuntimeError("out of cheese")

        monkeypatch.setitem(RULES, nnq.Linear, replace(RULES[nnq.Linear], describe=broken))
        with pytest.raises(
            QdeqError, match=r"^0: expected .*Linear that can be read, got RuntimeError: out of cheese"
        ) as info:
            dequantize_model(nn.Sequential(linear()))
        assert isinstance(info.value.__cause__, RuntimeError)


def test_the_engine_that_packed_need_not_be_the_current_one():
    model = quantize(nn.Sequential(tq.QuantStub(), nn.Linear(4, 4)), torch.randn(8, 4), backend="qnnpack")
    assert torch.backends.quantized.engine != "qnnpack"
    assert_same_bits(dequantize_model(model)[1].weight, model[1].weight().dequantize())
