"""Quantized multi-head attention: from a state dict and from files, into ``nn.MultiheadAttention``."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

import qdeq
from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import ENGINES
from tests.sources.eager.classes.test_attention import EMBED, HEADS, Model, converted

OPTIONS = {"one": {}, "no bias": {"bias": False}, "three": {"kdim": 6, "vdim": 4}}


def inputs(options):
    return (
        torch.randn(5, 3, EMBED),
        torch.randn(7, 3, options.get("kdim", EMBED)),
        torch.randn(7, 3, options.get("vdim", EMBED)),
    )


def quantized(options, backend="fbgemm"):
    torch.manual_seed(91)
    original = nn.MultiheadAttention(EMBED, HEADS, **options)
    if not options.get("bias", True):
        original.in_proj_bias = None
    return converted(original, backend, inputs(options))


def poisoned(options):
    target = Model(nn.MultiheadAttention(EMBED, HEADS, **options)).eval()
    for parameter in target.parameters():
        nn.init.constant_(parameter, float("nan"))
    return target


def saved(model, path, form):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates the dtypes it saves
        torch.save(model if form == "whole" else model.state_dict(), path)
    return qdeq.open(path)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("form", ["live", "file", "whole"])
@pytest.mark.parametrize("backend", ENGINES)
def test_into_the_float_class(backend, form, options, tmp_path):
    model = quantized(options, backend)
    source = model.state_dict() if form == "live" else saved(model, tmp_path / "a.pt", form)
    target = poisoned(options)
    _, report = qdeq.dequantize_state_dict(source, into=target)
    rebuilt = qdeq.dequantize_model(model).attention.state_dict()
    for name, value in target.attention.state_dict().items():
        assert_same_bits(value, rebuilt[name])
    if form != "whole":
        parts = {f"attention.linear_{x}._packed_params._packed_params" for x in "QKV"}
        assert parts <= report.accounted_sources()
    x = inputs(options)
    with torch.no_grad():
        torch.testing.assert_close(target(*x), qdeq.dequantize_model(model)(*x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["live", "file"])
def test_names_without_a_float_class(form, tmp_path):
    for options in ({}, {"kdim": 6, "vdim": 4}):
        model = quantized(options)
        source = model.state_dict() if form == "live" else saved(model, tmp_path / "a.pt", form)
        found, _ = qdeq.dequantize_state_dict(source)
        assert set(found) == {f"attention.{n}" for n in nn.MultiheadAttention(EMBED, HEADS, **options).state_dict()}


def test_the_stack_of_a_file_keeps_its_integers(tmp_path):
    """Written as int8 and read back: the same bits; scales of one row each."""
    model = quantized({})
    with saved(model, tmp_path / "a.pt", "file") as weights:
        entry = weights.entry("attention.in_proj_weight")
        value = weights["attention.in_proj_weight"]
        qdeq.save_safetensors(weights, tmp_path / "a.safetensors", keep="int8")
        assert (entry.dtype, entry.qscheme, entry.axis, entry.shape) == ("qint8", "per_channel_affine", 0, (24, 8))
        assert (entry.scale_min, entry.scale_max) == pytest.approx((float(value.scale.min()), float(value.scale.max())))
        assert entry.bytes == 3 * EMBED * EMBED
    parts = [getattr(model.attention, f"linear_{x}").weight() for x in "QKV"]
    assert torch.equal(value.int_repr, torch.cat([part.int_repr() for part in parts]))
    with qdeq.open(tmp_path / "a.safetensors") as kept:
        assert_same_bits(kept["attention.in_proj_weight"].dequantize(), torch.cat([p.dequantize() for p in parts]))


def test_a_prepared_model_drops_what_it_never_used():
    model = Model(nn.MultiheadAttention(EMBED, HEADS)).eval()
    model.qconfig = tq.default_qconfig
    state = tq.prepare(model).state_dict()
    found, report = qdeq.dequantize_state_dict(state)
    parts = [state[f"attention.linear_{x}.weight"] for x in "QKV"]
    assert_same_bits(found["attention.in_proj_weight"], torch.cat(parts))
    assert any(item.source == "attention.in_proj_weight" and "never used" in item.reason for item in report.dropped)


def test_a_float_class_that_keeps_three_projections(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for x in "QKV":
                setattr(self, f"linear_{x}", nn.Linear(EMBED, EMBED))
            self.out_proj = nn.Linear(EMBED, EMBED)

    target, model = Own(), quantized({})
    state = {k.removeprefix("attention."): v for k, v in model.state_dict().items() if k.startswith("attention.")}
    qdeq.dequantize_state_dict(state, into=target)
    assert_same_bits(target.linear_K.weight, model.attention.linear_K.weight().dequantize())
    torch.save(state, tmp_path / "own.pth")
    again = Own()
    qdeq.dequantize_state_dict(qdeq.open(tmp_path / "own.pth", like=again), into=again)
    assert_same_bits(again.linear_K.weight, target.linear_K.weight)


def test_the_float_class_decides_the_names_of_an_opened_file(tmp_path):
    """A file keeps its own keys: ``into`` names them, whatever it was opened for."""
    model = quantized({})
    torch.save(model.state_dict(), tmp_path / "a.pth")

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.Module()
            for x in "QKV":
                setattr(self.attention, f"linear_{x}", nn.Linear(EMBED, EMBED))
            self.attention.out_proj = nn.Linear(EMBED, EMBED)

    keeps, joins = Keeps(), poisoned({})
    weight = model.attention.linear_K.weight().dequantize()
    for like in (None, keeps, joins):
        source = qdeq.open(tmp_path / "a.pth", like=like)
        qdeq.dequantize_state_dict(source, into=keeps)
        assert_same_bits(keeps.attention.linear_K.weight, weight)
        qdeq.dequantize_state_dict(source, into=joins)
        assert_same_bits(joins.attention.in_proj_weight[EMBED : 2 * EMBED], weight)


def test_bias_k_is_not_in_the_file():
    state = quantized({}).state_dict()
    target = Model(nn.MultiheadAttention(EMBED, HEADS, add_bias_kv=True))
    with pytest.raises(qdeq.QdeqValueError, match=r"torch saves no bias_k and bias_v .* attention.bias_k"):
        qdeq.dequantize_state_dict(state, into=target)


def test_bias_k_is_in_a_whole_model(tmp_path):
    options = {"add_bias_kv": True}
    model, target = quantized(options), poisoned(options)
    qdeq.dequantize_state_dict(saved(model, tmp_path / "a.pt", "whole"), into=target)
    for name in ("bias_k", "bias_v"):
        assert_same_bits(getattr(target.attention, name), getattr(model.attention, name).dequantize())
