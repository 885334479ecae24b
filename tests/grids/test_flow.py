"""Operations that torch rounds on quantized tensors are found and imitated; what cannot be followed is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.grids.models import FUNCTIONS, Functions, assert_imitates, share_equal
from tests.helpers.models import quantize, tq
from tests.helpers.saturation import spread


# torch's converter warns of a FloatFunctional whose only operation takes a constant: nothing observes it.
@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_the_users_forward_are_imitated(name):
    torch.manual_seed(1)
    model = quantize(Functions(name), torch.randn(8, 3, 12, 12))
    rebuilt = assert_imitates(model, torch.randn(8, 3, 12, 12))
    assert isinstance(rebuilt, Functions)


@pytest.mark.parametrize(
    "module",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Tanh(),
        nn.Hardsigmoid(),
        nn.Hardtanh(-0.3, 0.4),
        nn.ReLU6(),
        nn.LeakyReLU(0.1),
        nn.Hardswish(),
        nn.ELU(),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.InstanceNorm2d(16, affine=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_float_and_quantized_modules_are_imitated(module):
    torch.manual_seed(2)
    model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 16, 3), module, nn.Conv2d(16, 4, 1), tq.DeQuantStub())
    # The grids of Sigmoid, Tanh and Hardsigmoid use all 8 bits, which the last layer takes.
    model = quantize(spread(model), torch.randn(8, 3, 12, 12))
    assert_imitates(model, torch.randn(8, 3, 12, 12))


def test_held_activation_is_rounded_once_and_after_the_relu():
    torch.manual_seed(4)

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                x = self.relu(self.conv(self.quant(x)))
            return self.dequant(x)

    x = torch.randn(4, 3, 8, 8)
    model = quantize(Untraceable(), x, groups=[["conv", "relu"]])
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert share_equal(rebuilt(x), model(x)) >= 0.99
    assert type(rebuilt.conv).__name__ == "ConvReLU2d"
    assert [type(m).__name__ for m in rebuilt.modules()].count("FakeQuantize") == 2
    assert [item.path for item in report.uncovered] == [""]
    assert "cannot be traced" in report.uncovered[0].reason
    assert "not imitated" in str(report)


def test_what_is_not_covered_is_named():
    torch.manual_seed(5)
    dynamic = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)
    _, report = qdeq.dequantize_model(dynamic, activations="fake_quant", return_report=True)
    assert [(item.path, "dynamic" in item.operation) for item in report.uncovered] == [("0", True)]


def test_shared_block_at_two_scales_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.first, self.second, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.pool(self.second(self.pool(self.first(self.quant(x))))))

    model = quantize(Twice(), torch.randn(2, 3, 8, 8))
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert [(item.path, item.operation) for item in report.uncovered] == [("pool", "AvgPool2d")]
    assert "different scales" in report.uncovered[0].reason
    assert not list(rebuilt.pool.children())
