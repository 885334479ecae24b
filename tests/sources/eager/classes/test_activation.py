from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import rebuilt_and_report

CASES = [
    (nnq.Hardswish(0.02, 10), nn.Hardswish(), (0.02, 10)),
    (nnq.ELU(0.03, 20, alpha=0.75), nn.ELU(0.75), (0.03, 20)),
    (nnq.LeakyReLU(0.03, 40, 0.125), nn.LeakyReLU(0.125), (0.03, 40)),
    (nnq.Sigmoid(1 / 256, 0), nn.Sigmoid(), (1 / 256, 0)),
    (nnq.Softmax(1, 1 / 256, 0), nn.Softmax(1), (1 / 256, 0)),
]


@pytest.mark.parametrize(("module", "target", "qparams"), CASES, ids=[type(m).__name__ for m, _, _ in CASES])
def test_class_arguments_and_arithmetic(module, target, qparams):
    torch.manual_seed(41)
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is type(target)
    assert rebuilt.extra_repr() == target.extra_repr()
    assert report.activation_qparams["0"] == pytest.approx(qparams)
    x = torch.quantize_per_tensor(torch.randn(4, 50) * 2, 0.05, 128, torch.quint8)
    scale, zero_point = report.activation_qparams["0"]
    expected = module(x).dequantize()
    actual = rebuilt(x.dequantize()).clamp((0 - zero_point) * scale, (255 - zero_point) * scale)
    assert ((actual - expected).abs() / scale).max() <= 1.01


def test_relu6_is_not_a_relu():
    module = nnq.ReLU6(inplace=True)
    assert isinstance(module, nn.ReLU)
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is nn.ReLU6
    assert rebuilt.inplace
    assert rebuilt(torch.tensor([7.0])) == 6
    assert not report.activation_qparams, "it keeps the scale of its input"


def test_prelu():
    torch.manual_seed(42)
    module = nnq.PReLU(0.05, 100, num_parameters=4)
    module.set_weight(torch.quantize_per_tensor(torch.rand(4), 0.0039, 5, torch.quint8))
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is nn.PReLU
    assert rebuilt.num_parameters == 4
    assert_same_bits(rebuilt.weight, module.weight.dequantize())
    assert report.activation_qparams["0"] == (0.05, 100)
    assert report.entries[0].dtype == "quint8"


def test_dropout_is_active_in_training_only():
    rebuilt, report = rebuilt_and_report(nnq.Dropout(0.75, inplace=True))
    assert type(rebuilt) is nn.Dropout
    assert (rebuilt.p, rebuilt.inplace) == (0.75, True)
    assert "training mode" in report.notes["0"][0]
