from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

from qdeq import dequantize_model
from tests.helpers.models import assert_same_bits, quantize
from tests.sources.eager.classes.helpers import rebuilt_and_report

OPS = ["add", "add_relu", "mul", "cat", "matmul", "add_scalar", "mul_scalar"]
MEANINGS = {
    "add": torch.add,
    "add_relu": lambda x, y: torch.relu(x + y),
    "mul": torch.mul,
    "matmul": torch.matmul,
    "add_scalar": torch.add,
    "mul_scalar": torch.mul,
}


@pytest.mark.parametrize("op", OPS)
def test_every_method_works_on_float_tensors(op):
    module = nnq.QFunctional()
    module.scale, module.zero_point = 0.125, 7
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is nnq.FloatFunctional
    assert report.activation_qparams == {"0": (0.125, 7)}
    x, y = torch.randn(3, 3), torch.randn(3, 3)
    if op == "cat":
        assert_same_bits(rebuilt.cat([x, y], dim=1), torch.cat([x, y], dim=1))
        return
    y = 0.5 if op.endswith("scalar") else y
    assert_same_bits(getattr(rebuilt, op)(x, y), MEANINGS[op](x, y))
    assert not rebuilt.state_dict()


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.skip = nnq.FloatFunctional()

    def forward(self, x):
        x = self.quant(x)
        return self.dequant(self.skip.add_relu(self.conv(x), x))


def test_a_residual_model():
    torch.manual_seed(3)
    int8 = quantize(Skip(), torch.randn(8, 3, 8, 8))
    rebuilt = dequantize_model(int8)
    assert list(rebuilt.state_dict()) == ["conv.weight", "conv.bias"]
    x = torch.randn(4, 3, 8, 8)
    assert (int8(x) - rebuilt(x)).abs().max() < 0.1
    assert (rebuilt(x) >= 0).all()


def test_what_runs_after_it_is_a_copy():
    module = nnq.QFunctional()
    rebuilt, _ = rebuilt_and_report(module)
    assert rebuilt.activation_post_process is not module.activation_post_process
    module.activation_post_process = nn.Hardtanh(-1.0, 1.0)
    rebuilt, _ = rebuilt_and_report(module)
    assert rebuilt.add(torch.tensor(3.0), torch.tensor(4.0)) == 1
    assert rebuilt.activation_post_process is not module.activation_post_process


def test_fx_functional_and_stubs():
    rebuilt, _ = rebuilt_and_report(nnq.FXFloatFunctional())
    assert type(rebuilt) is nnq.FloatFunctional
    for stub in (nnq.DeQuantize(), tq.QuantStub(), tq.DeQuantStub()):
        assert type(dequantize_model(nn.Sequential(stub, nnq.DeQuantize()))[0]) is nn.Identity
    rebuilt, report = rebuilt_and_report(nnq.Quantize(0.5, 3, torch.qint8))
    assert type(rebuilt) is nn.Identity
    assert report.activation_qparams == {"0": (0.5, 3)}
    assert report.activation_dtypes == {"0": "qint8"}
