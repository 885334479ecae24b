"""Int8 torch to ONNX: the file has the model's own integers, and ONNX Runtime runs it in int8."""

from __future__ import annotations

import copy
import os
import warnings

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.onnx_export.models import quantized, small, trained_resnet
from tools.models import tq
from tools.networks import NETWORKS

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tools.onnx_export import FLOAT_LAYERS, INTEGER_LAYERS, check, run, session  # noqa: E402 (needs both)

STUBS = (tq.QuantStub, tq.DeQuantStub)


def in_words(report: qdeq.Report) -> str:
    return "\n".join(f"{path}: {text}" for path, texts in report.notes.items() for text in texts)


def stubbed(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(STUBS[0](), *modules, STUBS[1]()).eval()


def no_groups(model: nn.Module) -> list[list[str]]:
    return []


@pytest.mark.parametrize("name", ["mobilenet_v3", "unet", "pointnet", "lstm", "gru", "bert"])
def test_every_weight_keeps_its_integers_and_comes_back_bit_for_bit(name, tmp_path):
    model, path = small(name), tmp_path / "model.onnx"
    report = qdeq.to_onnx(model, NETWORKS[name].samples(2)[0], path)
    found = check(model, path, report)
    assert found.weights >= 3
    assert (found.same, found.back) == (found.weights, found.weights)
    assert "float in the file" not in in_words(report)


def test_the_runtime_runs_it_in_int8_and_sees_the_same_classes(tmp_path):
    model, path = trained_resnet(), tmp_path / "model.onnx"
    inputs, _ = NETWORKS["resnet"].samples(256, seed=10**6)
    qdeq.to_onnx(model, inputs, path)
    runtime, counts = session(path)
    assert not any(counts[op] for op in (*FLOAT_LAYERS, "Relu", "Add", "MaxPool", "GlobalAveragePool"))
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1
    assert sum(counts[op] for op in INTEGER_LAYERS) == 9
    with torch.no_grad():
        expected = model(inputs)
    actual = torch.from_numpy(run(runtime, inputs))
    assert (actual.argmax(1) == expected.argmax(1)).all()
    assert (actual - expected).abs().max() / model.fc.scale <= 2.001
    assert NETWORKS["resnet"].accuracy(model) > 0.9


@pytest.mark.parametrize("form", ["graph", "traced", "frozen file"])
def test_graphs_and_scripts_give_the_same_file_as_modules(form, tmp_path):
    x = torch.randn(2, 3, 12, 12)
    model = copy.deepcopy(trained_resnet())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of the input's scale, which is a buffer
        given = torch.fx.symbolic_trace(model) if form == "graph" else torch.jit.trace(model, x)
    if form == "frozen file":
        torch.jit.freeze(given).save(tmp_path / "model.pt")
        given = tmp_path / "model.pt"
    paths = [tmp_path / "one.onnx", tmp_path / "other.onnx"]
    reports = [qdeq.to_onnx(source, x, path) for source, path in zip((model, given), paths, strict=True)]
    ours, theirs = [run(session(path)[0], x) for path in paths]
    assert (ours == theirs).all()
    held = [
        sorted(onnx.numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer if t.data_type == 3)
        for path in paths
    ]
    assert held[0] == held[1]
    assert all("float in the file" not in in_words(report) for report in reports)


def test_the_directions_of_an_lstm_may_have_scales_by_rows(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(6, 8, bidirectional=True))
    int8 = quantized(model, torch.zeros(0), dynamic=tq.per_channel_dynamic_qconfig)
    x = torch.randn(5, 2, 6)
    qdeq.to_onnx(int8, x, tmp_path / "model.onnx")
    tensors = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert sorted(tuple(t.dims) for t in tensors if t.data_type == 3 and len(t.dims) == 3) == [
        *[(1, 32, 6)] * 2,
        *[(1, 32, 8)] * 2,
    ]
    assert not [t.name for t in tensors if t.data_type == 1 and len(t.dims) == 3 and t.dims[1] == 32]
    rebuilt = qdeq.dequantize_model(int8)
    with torch.no_grad():
        difference = torch.from_numpy(run(session(tmp_path / "model.onnx")[0], x)) - rebuilt(x)[0]
    assert difference.abs().max() < 1e-5


def test_a_weight_whose_zero_points_are_fractions_stays_float_and_is_named(tmp_path):
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 4)).eval()
    model[0].qconfig = tq.float_qparams_weight_only_qconfig
    int8 = tq.convert(tq.prepare(model))
    report = qdeq.to_onnx(int8, torch.arange(6)[None], tmp_path / "model.onnx")
    assert "0.weight: float in the file: its zero points are fractions" in in_words(report)
    held = {tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert onnx.numpy_helper.to_array(held["0.weight"]).tobytes() == _float_bytes(int8, "0.weight")


def _float_bytes(model: nn.Module, name: str) -> bytes:
    return qdeq.dequantize_model(model).state_dict()[name].numpy().tobytes()


def test_biases_are_int32_or_the_floats_that_they_are(tmp_path):
    torch.manual_seed(0)
    int8 = quantized(stubbed(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)), torch.randn(8, 3, 3, 3), no_groups)
    x = torch.randn(2, 3, 3, 3)
    for float_biases, path in ((False, tmp_path / "int32.onnx"), (True, tmp_path / "float.onnx")):
        report = qdeq.to_onnx(int8, x, path, float_biases=float_biases)
        held = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
        back = {t.name: onnx.numpy_helper.to_array(t) for t in qdeq.dequantize_onnx(path).graph.initializer}
        wanted = qdeq.dequantize_model(int8).state_dict()
        assert ("1.bias" in held) == float_biases
        assert ("2 biases are int32" in in_words(report)) != float_biases
        for name in ("1.bias", "3.bias"):
            difference = (torch.from_numpy(back[name].copy()) - wanted[name]).abs().max()
            if float_biases:
                assert difference == 0
            else:
                assert held[f"{name}_quantized"].data_type == onnx.TensorProto.INT32
                scale = torch.from_numpy(onnx.numpy_helper.to_array(held[f"{name}_scale"]).copy())
                assert difference <= 0.51 * scale.max()


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, lambda: nn.Hardtanh(-0.5, 0.25)])
def test_a_clamp_works_on_integers_so_that_the_layer_in_front_is_fused(act, tmp_path):
    torch.manual_seed(0)
    model = stubbed(nn.Conv2d(3, 8, 3), act(), nn.Conv2d(8, 4, 3), act(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[1].weight *= 20
    inputs = torch.randn(8, 3, 8, 8)
    int8 = quantized(model, inputs, no_groups)
    qdeq.to_onnx(int8, inputs, tmp_path / "model.onnx")
    runtime, counts = session(tmp_path / "model.onnx")
    assert counts["QLinearConv"] == 3
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 1
    rebuilt = qdeq.dequantize_model(int8, activations="fake_quant")
    with torch.no_grad():
        expected = rebuilt(inputs)
    assert (torch.from_numpy(run(runtime, inputs)) - expected).abs().max() <= 1.01 * int8[-2].scale
    back = qdeq.dequantize_onnx(tmp_path / "model.onnx")
    assert sum(node.op_type in ("Relu", "Clip") for node in back.graph.node) == 2


def test_the_batch_may_have_any_size(tmp_path):
    model, path = small("vgg"), tmp_path / "model.onnx"
    qdeq.to_onnx(model, torch.randn(2, 3, 12, 12), path, dynamic_batch=True)
    x = torch.randn(5, 3, 12, 12)
    assert run(session(path)[0], x).shape == (5, 4)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize("opset", [13, 21])
def test_every_opset_is_written_as_it_says(opset, tmp_path):
    qdeq.to_onnx(small("vgg"), torch.randn(2, 3, 12, 12), tmp_path / "model.onnx", opset=opset)
    assert onnx.load(tmp_path / "model.onnx").opset_import[0].version == opset


def test_several_inputs_and_outputs_have_names(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(left) + self.other(right), self.one(left)

    int8 = quantized(Two().eval(), torch.zeros(0))
    qdeq.to_onnx(int8, (torch.randn(2, 4), torch.randn(2, 5)), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [value.name for value in graph.input] == ["left", "right"]
    assert [value.name for value in graph.output] == ["output_0", "output_1"]


def test_nothing_of_the_model_or_of_torch_changes(tmp_path):
    model = copy.deepcopy(small("vgg"))
    before = {name: value.clone() for name, value in _tensors(model).items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    model.train()
    qdeq.to_onnx(model, torch.randn(2, 3, 12, 12), tmp_path / "model.onnx")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in _tensors(model).items())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert os.listdir(tmp_path) == ["model.onnx"]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
