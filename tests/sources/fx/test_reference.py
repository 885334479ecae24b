"""Reference graphs, float between quantize and dequantize: the weights that they compute with, in plain layers."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.intrinsic as nni
from torch import nn
from torch.ao.quantization import backend_config
from torch.nn import functional as F

from qdeq import dequantize_model
from tests.helpers.graphs import converted, same_bits
from tools.models import tq


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.w = nn.Parameter(torch.randn(6, 6))
        self.token = nn.Parameter(torch.randn(6))
        self.head = nn.Linear(6, 4)
        self.leaky = nn.LeakyReLU(0.1)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)) + x)
        return self.leaky(self.head(F.linear(x, self.w) + self.token))


@pytest.mark.filterwarnings("ignore:Default qconfig of oneDNN")
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack", "onednn"])
def test_a_reference_graph_has_the_weights_that_it_computes_with(backend):
    torch.manual_seed(2)
    x, model = torch.randn(2, 3, 6, 6), Net().eval()
    backends = {"backend_config": backend_config.get_onednn_backend_config()} if backend == "onednn" else {}
    int8 = converted(model, x, reference=True, backend=backend, **backends)
    rebuilt, report = dequantize_model(int8, return_report=True)
    assert set(rebuilt.state_dict()) == {"w", "token", "conv.weight", "conv.bias", "head.weight", "head.bias"}
    assert same_bits(rebuilt.token, model.token)
    conv, head = (m[0] if isinstance(m, nn.Sequential) else m for m in (int8.conv, int8.head))
    assert same_bits(rebuilt.conv.weight, conv.get_weight())
    assert same_bits(rebuilt.head.weight, head.get_weight())
    assert {entry.target for entry in report.entries} == set(rebuilt.state_dict()) - {"token"}
    imitation, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    assert torch.equal(imitation(x), int8(x)), "a reference graph rounds in floats, as its imitation does"
    assert not any(isinstance(module, nni.modules.fused._FusedModule) for module in rebuilt.modules())


def test_weights_in_float16():
    mapping = tq.QConfigMapping().set_global(tq.float16_dynamic_qconfig)

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

        def forward(self, x):
            return F.linear(x, self.w)

    model, x = Half(), torch.randn(3, 4)
    for reference, name in ((False, "linear.weight"), (True, "w")):
        rebuilt = dequantize_model(converted(model, x, mapping=mapping, reference=reference))
        assert same_bits(rebuilt.get_parameter(name), model.w.half().float())
