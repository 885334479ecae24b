"""Layers that add_quant_dequant wrapped have the names of the float class again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

from qdeq import dequantize_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def wrapped(net, data):
    work = copy.deepcopy(net)
    work.conv.qconfig = work.fc.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(tq.add_quant_dequant(work))
    prepared(data)
    return tq.convert(prepared)


def test_names_are_those_of_the_float_class():
    torch.manual_seed(0)
    net, data = Net().eval(), torch.randn(2, 3, 8, 8)
    int8 = wrapped(net, data)
    result, report = dequantize_model(int8, return_report=True)
    assert result.state_dict().keys() == net.state_dict().keys()
    assert {entry.target for entry in report.entries} == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"}
    assert {entry.source for entry in report.entries} >= {"conv.module.weight", "fc.module.bias"}
    assert torch.equal(result.conv.weight, int8.conv.module.weight().dequantize())
    Net().load_state_dict(result.state_dict())
    torch.testing.assert_close(result(data), net(data), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("activations", ["clamp", "fake_quant"])
def test_a_wrapper_that_carries_the_rounding_of_its_input_stays(activations):
    torch.manual_seed(0)
    int8 = wrapped(Net().eval(), torch.randn(2, 3, 8, 8))
    result = dequantize_model(int8, activations=activations)
    assert type(result.conv) is tq.QuantWrapper


def test_wrappers_of_the_user_stay():
    torch.manual_seed(0)
    net = nn.Sequential(tq.QuantWrapper(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), tq.QuantWrapper(nn.Linear(4, 2)))
    net.eval().qconfig = tq.get_default_qconfig("fbgemm")
    net[1].register_forward_hook(lambda *_: None)
    prepared = tq.prepare(net)
    prepared(torch.randn(3, 4))
    result = dequantize_model(tq.convert(prepared))
    assert [type(part) for part in result] == [tq.QuantWrapper, tq.QuantWrapper]
