"""Correct pairs, of which tools/innocent.py makes thousands: no layer is accused. And the guilty next to them are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qdeq
from tools.innocent import judged
from tools.models import tq
from tools.networks import NETWORKS, learn
from tools.networks.images import MobileV2
from tools.networks.recipes import recipes

SLICE = (
    "mobilenet_v2/qnnpack/ptq 4 bits per channel",
    "pointnet/fbgemm/ptq default",
    "pointnet/qnnpack/qat 4 bits per tensor",
    "lstm/fbgemm/float16",
)


@pytest.mark.parametrize("name", SLICE)
def test_no_form_of_the_same_weights_is_accused(name):
    network, engine, _ = name.split("/")
    results = judged(name, dict(recipes([network], (engine,)))[name])
    assert len(results) >= 10
    assert not {pair: blamed for pair, blamed in results.items() if blamed}


def made(name: str):
    network, engine, _ = name.split("/")
    return dict(recipes([network], (engine,)))[name]()


def first_fault(int8, model):
    return next(item for item in qdeq.explain(int8, model).findings if item.is_fault)


def test_the_form_of_right_weights_is_said():
    quantized = made("pointnet/fbgemm/qat 4 bits per tensor")
    torch.backends.quantized.engine = "fbgemm"
    rebuilt = qdeq.dequantize_model(quantized.int8)
    almost = copy.deepcopy(rebuilt)
    with torch.no_grad():
        for parameter in almost.parameters():
            parameter *= 1 + 2**-23
    for model, form in (
        (rebuilt, "dequantized"),
        (almost, "fake-quantized"),
        (quantized.floats["prepared"], "prepared"),
    ):
        findings = qdeq.explain(quantized.int8, model).findings
        assert {item.evidence["form"] for item in findings} == {form}
    assert any(item.evidence.get("clipped_weights") for item in findings)


def test_an_altered_weight_of_a_clipped_layer_is_named():
    quantized = made("pointnet/fbgemm/qat 4 bits per tensor")
    torch.backends.quantized.engine = "fbgemm"
    model = copy.deepcopy(quantized.floats["prepared"])
    with torch.no_grad():
        weight = model.conv2.weight
        weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    fault = first_fault(quantized.int8, model)
    assert (fault.module, fault.kind) == ("conv2", "weight_altered")


def test_weights_at_the_limits_do_not_hide_a_missing_scale():
    """Of three integers two are the last ones: what exceeds them may be clipped, unless a formula gives all of it."""
    torch.backends.quantized.engine = "fbgemm"
    torch.manual_seed(0)
    model = nn.Sequential(tq.QuantStub(), nn.Linear(32, 8), tq.DeQuantStub()).eval()
    ternary = tq.MinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, quant_min=-1, quant_max=1
    )
    model.qconfig = tq.QConfig(tq.default_observer, ternary)
    prepared = tq.prepare(model)
    prepared(torch.randn(8, 32))
    int8 = tq.convert(prepared)
    assert qdeq.explain(int8, model).agrees
    wrong = qdeq.dequantize_model(int8)
    with torch.no_grad():
        wrong[1].weight.copy_(int8[1].weight().int_repr())
    assert first_fault(int8, wrong).kind == "scale_missing"


def test_an_infinite_weight_is_not_taken_for_a_clipped_one():
    quantized = made("pointnet/fbgemm/ptq default")
    torch.backends.quantized.engine = "fbgemm"
    model = qdeq.dequantize_model(quantized.int8)
    with torch.no_grad():
        values = quantized.int8.fc2.weight().int_repr()
        model.fc2.weight[values == values.max()] = float("inf")
    assert first_fault(quantized.int8, model).kind == "not_finite"


@pytest.mark.parametrize(("low", "zero_point"), [(-128, 7), (-128, -20)])
def test_an_ignored_zero_point_of_a_tensor_is_named(low, zero_point):
    torch.manual_seed(0)
    weight = torch.quantize_per_tensor(torch.randn(8, 16), 0.03, zero_point, torch.qint8)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight.int_repr() * 0.03)
    assert first_fault({"0.weight": weight}, model).kind == "zero_point_ignored"


class Norms(nn.Module):
    """Batch norms that nothing can be folded into: before a convolution, and behind a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.bn0, self.conv, self.pool = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)
        self.bn, self.relu, self.fc = nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.bn(self.pool(self.conv(self.bn0(self.quant(x))))))
        return self.dequant(self.fc(x.mean((2, 3))))


def test_a_quantized_batch_norm_is_compared_in_every_form(tmp_path):
    torch.backends.quantized.engine = "fbgemm"
    torch.manual_seed(0)
    net = Norms()
    net(torch.randn(16, 3, 10, 10) * 2 + 1)
    fused = tq.fuse_modules(net.eval(), [["bn", "relu"]])
    fused.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(fused)
    prepared(torch.randn(8, 3, 10, 10))
    int8 = tq.convert(prepared)
    torch.save(int8.state_dict(), tmp_path / "int8.pth")
    torch.save(net.state_dict(), tmp_path / "float.pth")
    for model in (net, prepared, qdeq.dequantize_model(int8), tmp_path / "float.pth"):
        for ours in (int8, tmp_path / "int8.pth"):
            answer = qdeq.explain(ours, model)
            assert answer.agrees, str(answer)
    wrong = copy.deepcopy(net)
    with torch.no_grad():
        wrong.bn.running_mean += 1
    assert (fault := first_fault(int8, wrong)).kind == "parameter_wrong"
    assert fault.module == "bn"


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, whenever it reads a quantized tensor
def test_a_whole_pickled_model_that_torch_loads_half_made_is_explained(tmp_path):
    quantized = made("pointnet/fbgemm/ptq default")
    torch.backends.quantized.engine = "fbgemm"
    torch.save(quantized.int8, tmp_path / "whole.pt")
    revived = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert qdeq.explain(revived, quantized.floats["float"], quantized.inputs[:8]).agrees
    assert not hasattr(revived.conv1, "_modules")  # the user's own is left as it was


def test_relu6_that_qnnpack_computes_wrongly_is_named():
    class WithReLU6(MobileV2):
        activation = nn.ReLU6

    torch.manual_seed(0)
    network = NETWORKS["mobilenet_v2"]
    net = learn(network, WithReLU6().train(), steps=10).eval()
    inputs, _ = network.samples(16)
    for engine in ("fbgemm", "qnnpack"):
        torch.backends.quantized.engine = engine
        fused = tq.fuse_modules(net, net.groups())
        fused.qconfig = tq.get_default_qconfig(engine)
        prepared = tq.prepare(fused)
        prepared(inputs)
        int8 = tq.convert(prepared)
        named = {item.module for item in qdeq.explain(int8, net, inputs).findings if item.kind == "int8_kernel_wrong"}
        clamped = {path for path, module in int8.named_modules() if type(module).__name__ == "ReLU6"}
        # torch may mend it: then its clamp agrees with the exact one, and nothing is said.
        x = torch.quantize_per_tensor(torch.randn(1, 8, 4, 4) * 9, 0.1, 100, torch.quint8)
        x = x.contiguous(memory_format=torch.channels_last)
        exact = torch.clamp(x.dequantize(), 0, 6)
        wrong = bool(((int8.get_submodule(min(clamped))(x).dequantize() - exact).abs() > 0.2).any())
        assert bool(named) is wrong
        assert named <= clamped
