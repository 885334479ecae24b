"""Weights of ONNX models by the names of torch's modules: into a model, and compared with one."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

import qdeq
from qdeq.onnx_graphs.parameters import module_path
from tests.onnx_graphs.models import floated, onnx, operators, weights


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ("/conv1/Conv", "conv1"),
        ("/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
        ("/features/features.17/conv/conv.0/conv.0.2/Clip", "features.17.conv.0.2"),
        ("/a/a/MatMul", "a.a"),
        ("/Conv", ""),
        ("Conv_3", ""),
        ("", ""),
    ],
)
def test_the_module_in_a_nodes_name(node, path):
    assert module_path(node) == path


class Net(nn.Module):
    """A batch norm that the exporter folds, a container, a bias of zeros, and a linear layer on three dimensions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.up, self.head = nn.Linear(16, 24), nn.Linear(8 * 24, 5)

    def forward(self, x):
        return self.head(self.up(self.body(self.stem(x)).flatten(2)).flatten(1))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The model, its float ONNX file, and int8 ones: static in both formats, and dynamic."""
    from onnxruntime import quantization

    from tools.onnx_table import Samples, quantize_quietly

    torch.manual_seed(0)
    model, folder = Net().eval(), tmp_path_factory.mktemp("names")
    model.stem[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    torch.onnx.export(model, (x,), folder / "float.onnx", dynamo=False, input_names=["x"])
    for form in ("QDQ", "QOperator"):
        options = {"quant_format": quantization.QuantFormat[form], "per_channel": True}
        with quantize_quietly():
            samples = Samples([{"x": torch.randn(2, 3, 8, 8).numpy()} for _ in range(3)])
            quantization.quantize_static(folder / "float.onnx", folder / f"{form}.onnx", samples, **options)
    return model, folder


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_an_innocent_model_is_not_accused(exported, form):
    """Its biases are integers, too: half a step of theirs is no fault."""
    model, folder = exported
    for other in (folder / "float.onnx", model.state_dict(), model):
        found = qdeq.explain(folder / f"{form}.onnx", other)
        assert not [finding.kind for finding in found.findings if not finding.agrees], str(found)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_what_is_wrong_is_named(exported, form):
    model, folder = exported
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["up.weight"] = state["up.weight"] * 2
    state["body.0.bias"] = state["body.0.bias"] + 0.01
    kinds = {f.path: f.kind for f in qdeq.explain(folder / f"{form}.onnx", state).findings if not f.agrees}
    assert set(kinds) == {"up", "body.0"}
    assert kinds["body.0"] == "bias_wrong"


def test_into_a_model(exported):
    model, folder = exported
    fresh = Net().eval()
    qdeq.dequantize_state_dict(qdeq.open(folder / "QDQ.onnx"), into=fresh)
    x = torch.randn(2, 3, 8, 8)
    assert (fresh(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()
    held = weights(qdeq.dequantize_onnx(folder / "QDQ.onnx"))
    assert torch.equal(fresh.body[0].weight, torch.tensor(next(a for a in held.values() if a.shape == (8, 8, 3, 3))))


def test_what_torchs_own_exporter_writes_of_an_int8_model():
    """Constants as nodes, zero points that nodes compute, and a Cast behind each QuantizeLinear."""
    import torch.ao.quantization as tq

    torch.manual_seed(5)
    torch.backends.quantized.engine = "fbgemm"
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(100, 5))
    model, x = tq.QuantWrapper(nn.Sequential(*layers).eval()), torch.rand(2, 3, 16, 16)
    model.qconfig = tq.get_default_qconfig("fbgemm")
    tq.fuse_modules(model, [["module.0", "module.1"]], inplace=True)
    tq.prepare(model, inplace=True)(x)
    tq.convert(model, inplace=True)
    buffer = io.BytesIO()
    torch.onnx.export(model, (x,), buffer, dynamo=False, opset_version=13)
    result, report = floated(onnx.load_from_string(buffer.getvalue()))
    assert operators(result) == ["Conv", "Relu", "MaxPool", "Conv", "Flatten", "Gemm"]
    held = {array.tobytes() for array in weights(result).values()}
    wanted = qdeq.dequantize_model(model).module
    assert all(wanted[at].weight.detach().numpy().tobytes() in held for at in (0, 3, 5))
    assert len(report.entries) == 6
