"""Scripts in all forms: the int8 graph has the script's bits, the float one those of the eager model's rebuild."""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.helpers.house import none_of
from tests.sources.torchscript import models
from tests.sources.torchscript.scripts import FORMS, as_script, program_of, run_int8, same, saved

KINDS = {"static": (models.static, models.images), "sequences": (models.sequences, models.tokens)}


class Case(NamedTuple):
    """A model, its input, and a script of it."""

    model: nn.Module
    x: Tensor
    form: str
    script: Any


@pytest.fixture(scope="module", params=KINDS)
def eager(request):
    make, example = KINDS[request.param]
    return make(), example()


@pytest.fixture(scope="module", params=FORMS)
def case(eager, request):
    model, x = eager
    return Case(model, x, request.param, as_script(model, request.param, x))


@pytest.fixture(scope="module")
def rebuilt(case):
    return qdeq.dequantize_model(case.script, return_report=True)


def test_the_graph_runs_as_the_script_does(case):
    assert same(run_int8(program_of(case.script), case.x), case.script(case.x))


def test_the_float_model_is_that_of_the_eager_one(case, rebuilt):
    expected, (result, report) = qdeq.dequantize_model(case.model), rebuilt
    assert same(result(case.x), expected(case.x))
    assert {entry.target for entry in report.entries} <= {name for name, _ in result.named_parameters()}
    assert len(list(result.parameters())) == len(list(expected.parameters()))
    assert any("frozen" in note for note in report.notes.get("", [])) == case.form.endswith("frozen")
    assert all(p.requires_grad and p.is_contiguous() for p in result.parameters())
    if not case.form.endswith("frozen"):
        assert {n for n, _ in result.named_parameters()} == {n for n, _ in expected.named_parameters()}
        for name, parameter in expected.named_parameters():
            assert torch.equal(result.get_parameter(name), parameter), name


@pytest.mark.filterwarnings("ignore:The TorchScript type system")  # of torch, about its own GraphModule
def test_the_result_is_a_float_model_like_any_other(case, rebuilt):
    (result, _), x = rebuilt, case.x
    expected = result(x)
    archive = saved(torch.jit.script(result))
    assert same(torch.jit.load(io.BytesIO(archive))(x), expected)
    none_of("quantized names", [word for word in ("quantized", "PackedParams") if word.encode() in archive])
    written = io.BytesIO()
    torch.save(result, written)
    written.seek(0)
    assert same(torch.load(written, weights_only=False)(x), expected)
    copied = copy.deepcopy(result).train()
    copied(x).square().mean().backward()
    none_of("without gradient", [name for name, parameter in copied.named_parameters() if parameter.grad is None])
    assert all(parameter.grad is None for parameter in result.parameters())


def test_fake_quant_computes_what_the_script_does(case, rebuilt):
    imitating, report = qdeq.dequantize_model(case.script, activations="fake_quant", return_report=True)
    if isinstance(case.model, models.Static):
        assert report.uncovered == []
        assert torch.allclose(imitating(case.x), case.script(case.x), rtol=0, atol=1e-6)
    else:
        assert {item.reason for item in report.uncovered} == {
            "its input is quantized anew at every call, with no fixed scale"
        }
    assert same(qdeq.drop_activations(imitating)(case.x), rebuilt[0](case.x))


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


def test_neither_loaded_nor_run(case, tmp_path, monkeypatch):
    """A file is read, and the result runs, without torch's loaders and without a quantized operator."""
    path = tmp_path / "model.pt"
    path.write_bytes(saved(case.script))
    expected = qdeq.dequantize_model(case.model)(case.x)

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
    assert same(qdeq.dequantize_model(path)(case.x), expected)


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


def test_the_result_exports(case, rebuilt):
    """To ONNX, where no quantized operator is left, and by torch.export."""
    onnx = pytest.importorskip("onnx")
    (result, _), x, written = rebuilt, case.x, io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        torch.onnx.export(result, (x,), written, dynamo=False)
    operators = {node.op_type for node in onnx.load_from_string(written.getvalue()).graph.node}
    assert not {"QuantizeLinear", "DequantizeLinear"} & operators
    assert operators & {"Conv", "LSTM"}
