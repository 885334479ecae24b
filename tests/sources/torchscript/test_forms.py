"""Scripts in all forms: the int8 graph has the script's bits, the float one those of the eager model's rebuild."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import qdeq
from tests.helpers.house import none_of
from tests.sources.torchscript import models
from tests.sources.torchscript.scripts import FORMS, as_script, program_of, run_int8, same, saved

KINDS = {"static": (models.static, models.images), "sequences": (models.sequences, models.tokens)}


@pytest.fixture(scope="module", params=KINDS)
def eager(request):
    make, example = KINDS[request.param]
    return make(), example()


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


def test_the_graph_runs_as_the_script_does(eager, form):
    model, x = eager
    script = as_script(model, form, x)
    assert same(run_int8(program_of(script), x), script(x))


def test_the_float_model_is_that_of_the_eager_one(eager, form):
    model, x = eager
    script = as_script(model, form, x)
    expected, (rebuilt, report) = qdeq.dequantize_model(model), qdeq.dequantize_model(script, return_report=True)
    assert same(rebuilt(x), expected(x))
    assert {entry.target for entry in report.entries} <= {name for name, _ in rebuilt.named_parameters()}
    assert len(list(rebuilt.parameters())) == len(list(expected.parameters()))
    assert all(p.requires_grad and p.is_contiguous() for p in rebuilt.parameters())
    if not form.endswith("frozen"):
        assert {n for n, _ in rebuilt.named_parameters()} == {n for n, _ in expected.named_parameters()}
        for name, parameter in expected.named_parameters():
            assert torch.equal(rebuilt.get_parameter(name), parameter), name


@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # of torch, about its own GraphModule
def test_the_result_is_a_float_model_like_any_other(eager, form):
    model, x = eager
    rebuilt = qdeq.dequantize_model(as_script(model, form, x))
    expected = rebuilt(x)
    archive = saved(torch.jit.script(rebuilt))
    assert same(torch.jit.load(io.BytesIO(archive))(x), expected)
    none_of("quantized names", [word for word in ("quantized", "PackedParams") if word.encode() in archive])
    written = io.BytesIO()
    torch.save(rebuilt, written)
    written.seek(0)
    assert same(torch.load(written, weights_only=False)(x), expected)
    copied = copy.deepcopy(rebuilt).train()
    copied(x).square().mean().backward()
    none_of("without gradient", [name for name, parameter in copied.named_parameters() if parameter.grad is None])
    assert all(parameter.grad is None for parameter in rebuilt.parameters())


def test_fake_quant_computes_what_the_script_does(form):
    model, x = models.static(), models.images()
    script = as_script(model, form, x)
    rebuilt, report = qdeq.dequantize_model(script, activations="fake_quant", return_report=True)
    assert report.uncovered == []
    wrong = (rebuilt(x) - script(x)).abs() > 1e-6
    assert int(wrong.sum()) == 0
    plain = qdeq.drop_activations(rebuilt)
    assert same(plain(x), qdeq.dequantize_model(script)(x))


def test_a_file_is_the_same_as_the_module(eager, tmp_path):
    model, x = eager
    script = torch.jit.script(model)
    path = tmp_path / "model.pt"
    script.save(str(path))
    expected = qdeq.dequantize_model(script)(x)
    assert same(qdeq.dequantize_model(path)(x), expected)
    assert same(qdeq.dequantize_model(str(path))(x), expected)


def test_the_script_is_left_as_it_is_and_shares_no_memory(eager):
    model, x = eager
    script = torch.jit.script(model)
    before = script(x)
    rebuilt = qdeq.dequantize_model(script)
    with torch.no_grad():
        for tensor in (*rebuilt.parameters(), *rebuilt.buffers()):
            tensor.zero_()
    assert same(script(x), before)


def test_neither_loaded_nor_run(eager, form, tmp_path, monkeypatch):
    """A file is read, and the result runs, without torch's loaders and without a quantized operator."""
    model, x = eager
    path = tmp_path / "model.pt"
    path.write_bytes(saved(as_script(model, form, x)))
    expected = qdeq.dequantize_model(model)(x)

    def refuse(*args, **kwargs):
        raise AssertionError("torch was asked to load or to run something")

    call = torch._ops.OpOverloadPacket.__call__

    def call_float(packet, *args, **kwargs):
        assert "quantize" not in str(packet)
        return call(packet, *args, **kwargs)

    for owner, name in [(torch, "load"), (torch.jit, "load"), (torch._C, "import_ir_module")]:
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(torch._ops.OpOverloadPacket, "__call__", call_float)
    with pytest.raises(AssertionError):
        torch.ops.quantized.linear_prepack(torch.ones(1, 1), None)
    assert same(qdeq.dequantize_model(path)(x), expected)


def test_flags_and_buffers_stay_what_they_are():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.frozen = nn.Parameter(torch.ones(4), requires_grad=False)
            self.shift = nn.Parameter(torch.zeros(4))
            self.register_buffer("mask", torch.tensor([True, False, True, True]))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return torch.where(self.mask, self.norm(self.linear(x)) * self.frozen + self.shift, x)

    model = torch.ao.quantization.quantize_dynamic(Mixed().eval(), {nn.Linear})
    x = torch.randn(3, 4)
    rebuilt, report = qdeq.dequantize_model(torch.jit.script(model), return_report=True)
    flags = {name: parameter.requires_grad for name, parameter in rebuilt.named_parameters()}
    names = ("linear.weight", "linear.bias", "shift", "norm.weight", "norm.bias")
    assert flags == {**dict.fromkeys(names, True), "frozen": False}
    assert set(dict(rebuilt.named_buffers())) == {"mask", "norm.running_mean", "norm.running_var"}
    assert [item.source for item in report.dropped] == ["norm.num_batches_tracked"]
    assert same(rebuilt(x), qdeq.dequantize_model(model)(x))


def test_equal_constants_of_a_frozen_script_become_parameters_of_their_own():
    """Freezing keeps equal tensors as one: here the weight of one norm and the variance of both."""

    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.linear = nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(self.second(torch.relu(self.first(torch.relu(x)))))

    model = torch.ao.quantization.quantize_dynamic(Norms().eval(), {nn.Linear})
    rebuilt = qdeq.dequantize_model(torch.jit.freeze(torch.jit.script(model)))
    x = torch.randn(3, 4)
    assert same(rebuilt(x), qdeq.dequantize_model(model)(x))
    rebuilt(x).sum().backward()
    assert len(list(rebuilt.parameters())) == 6
    assert len(list(rebuilt.buffers())) == 2
