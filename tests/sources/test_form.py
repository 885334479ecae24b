"""The door for sources: a form from outside the package gets all that the package does for its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qdeq
from qdeq import QdeqError, dequantize_model
from qdeq.grids.grid import Output
from qdeq.layers.layer import Layer, Role, Source
from qdeq.report import DroppedSource
from qdeq.sources import FORMS
from qdeq.sources.form import Description
from tests.helpers.models import assert_same_bits

# ---- the form: a dict of arrays that calls itself a model ------------------------------------------------------------


class Arrays(dict):
    """name -> {"weight": int8 (out, in), "scale": (out,), "bias": (out,), "output": (scale, zero_point)}, in order."""


class ArraysForm:
    name = "a dict of arrays"

    def recognise(self, model):
        return isinstance(model, Arrays)

    def describe(self, model, options, report):
        found = Description(layers=[Layer("input", "Arrays", nn.Identity, role=Role.QUANTIZE)])
        found.layers[0].output = Output(*model["input"], dtype="quint8", zero_point_first=True)
        for name, arrays in model.items():
            if name != "input":
                rows, columns = arrays["weight"].shape
                layer = Layer(name, "Arrays", nn.Linear, {"in_features": columns, "out_features": rows})
                layer.add("weight", Source(f"{name}.weight", self.weight(arrays)))
                layer.add_tensor("bias", arrays["bias"])
                layer.output = Output(*arrays["output"])
                layer.dropped.append(DroppedSource(f"{name}.output", "quantization of the output"))
                layer.read.append(f"{name}.scale")
                layer.holds = [f"{name}.{key}" for key in arrays]
                found.layers.append(layer)
        return found

    def rebuild(self, model, made, options, report):
        result = nn.Sequential()
        for part in made:
            result.add_module(part.layer.path, part.module)
            report.replaced[part.layer.path] = (part.layer.source_class, type(part.module).__name__)
        return result

    def weight(self, arrays):
        zero_points = torch.zeros(len(arrays["scale"]), dtype=torch.int64)
        scheme = ("per_channel_affine", "qint8", tuple(arrays["weight"].shape))
        return qdeq.QuantizedWeight(arrays["weight"], arrays["scale"], zero_points, 0, *scheme)


# ---- what it gets ----------------------------------------------------------------------------------------------------


@pytest.fixture
def form():
    FORMS.insert(0, ArraysForm())
    yield FORMS[0]
    del FORMS[0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = Arrays(input=(0.02, 128))
    for name, (rows, columns) in {"first": (8, 4), "last": (3, 8)}.items():
        integers = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
        scale = torch.rand(rows, dtype=torch.float64) / 100
        layers[name] = {"weight": integers, "scale": scale, "bias": torch.randn(rows), "output": (0.03, 120)}
    return layers


def test_without_the_form_it_is_refused(model):
    with pytest.raises(QdeqError, match="model: expected a torch.nn.Module, got .*Arrays"):
        dequantize_model(model)


def test_it_is_rebuilt_bit_for_bit_with_an_account(form, model):
    rebuilt, report = dequantize_model(model, return_report=True)
    for name in ("first", "last"):
        weight = form.weight(model[name])
        assert_same_bits(rebuilt.get_submodule(name).weight, weight.to_torch().dequantize())
        assert_same_bits(rebuilt.get_submodule(name).bias, model[name]["bias"])
        entry = next(entry for entry in report.entries if entry.target == f"{name}.weight")
        assert (entry.dtype, entry.qscheme) == ("qint8", "per_channel_affine")
    assert report.activation_qparams == {"input": (0.02, 128), "first": (0.03, 120), "last": (0.03, 120)}


def test_what_it_forgets_is_an_error(form, model, monkeypatch):
    model["last"]["forgotten"] = torch.zeros(1)
    with pytest.raises(QdeqError, match=r"unused sources \['last\.forgotten'\]"):
        dequantize_model(model)


def test_its_activations_are_clamped_and_rounded(form, model):
    x = 4 * torch.randn(16, 4)
    drop, clamp, fake = (dequantize_model(model, activations=mode) for mode in ("drop", "clamp", "fake_quant"))

    def int8(x):
        x = torch.quantize_per_tensor(x, *model["input"], torch.quint8).dequantize()
        for name in ("first", "last"):
            x = nn.functional.linear(x, form.weight(model[name]).to_torch().dequantize(), model[name]["bias"])
            x = torch.quantize_per_tensor(x, *model[name]["output"], torch.quint8).dequantize()
        return x

    with torch.no_grad():
        wanted = int8(x)
        assert (fake(x) == wanted).float().mean() >= 0.95
        assert (fake(x) - wanted).abs().mean() < (clamp(x) - wanted).abs().mean() < (drop(x) - wanted).abs().mean()
    assert_same_bits(qdeq.drop_activations(fake)(x), drop(x))


def test_explain_names_what_is_wrong_with_a_copy(form, model):
    rebuilt = dequantize_model(model)
    assert qdeq.explain(model, rebuilt).agrees
    with torch.no_grad():
        rebuilt.last.weight.normal_()
    (first, *_) = qdeq.explain(model, rebuilt).findings
    assert (first.kind, first.module) == ("weight_not_copied", "last")


@pytest.mark.parametrize("step", ["describe", "rebuild"])
def test_a_form_that_recognises_a_model_and_then_fails_is_named(form, model, step, monkeypatch):
    def broken(*args):
        raise KeyError("head")

    monkeypatch.setattr(ArraysForm, step, broken)
    with pytest.raises(QdeqError, match=r"model: expected a dict of arrays that can be read, got KeyError: 'head'"):
        dequantize_model(model)
