"""Models and checks that the tests of activations share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.nn import functional as F

import qdeq
from tests.helpers.models import assert_same_bits, tq
from tests.helpers.saturation import assert_same_on_every_cpu


def share_equal(a: Tensor, b: Tensor) -> float:
    return float((a == b).float().mean())


def assert_imitates(model: nn.Module, x: Tensor, minimum: float = 0.99) -> nn.Module:
    """The rebuilt model gives the int8 model's outputs, all but a few exactly and those within a step."""
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert report.uncovered == []
    assert_same_on_every_cpu(model, x)
    with torch.no_grad():
        expected, actual = model(x), rebuilt(x)
    assert share_equal(actual, expected) >= minimum
    return rebuilt


def exact(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The rebuilt model, and why which operations are not exact."""
    rebuilt, report = qdeq.dequantize_model(model, activations="exact", return_report=True)
    return rebuilt, [f"{item.path}: {item.operation}: {item.reason}" for item in report.uncovered]


def assert_exact(model: nn.Module, x: Tensor) -> nn.Module:
    rebuilt, uncovered = exact(model)
    assert uncovered == []
    assert_same_on_every_cpu(model, x)
    with torch.no_grad():
        assert_same_bits(rebuilt(x), model(x))
    return rebuilt


class Functions(nn.Module):
    """A forward with the one operation ``function`` between a convolution and the output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.layer = nn.Conv2d(3, 16, 3, padding=1)
        self.function = FUNCTIONS[name]
        # convert() warns of one that calibration never reached.
        self.math = FloatFunctional() if name in MATH else None
        self.dequant = tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.function(self, self.layer(self.quant(x))))


FUNCTIONS = {
    "avg_pool2d": lambda self, x: F.avg_pool2d(x, 2),
    "avg_pool2d padded": lambda self, x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "adaptive_avg_pool2d": lambda self, x: F.adaptive_avg_pool2d(x, 3),
    "mean": lambda self, x: x.mean([2, 3]),
    "cat": lambda self, x: torch.cat([x, F.relu(x)], 1),
    "sigmoid": lambda self, x: torch.sigmoid(x),
    "tanh": lambda self, x: x.tanh(),
    "hardsigmoid": lambda self, x: F.hardsigmoid(x),
    "relu6": lambda self, x: F.relu6(x),
    "clamp": lambda self, x: x.clamp(-0.5, 0.7),
    "leaky_relu": lambda self, x: F.leaky_relu(x, 0.2),
    "bilinear": lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "nearest": lambda self, x: F.interpolate(x, scale_factor=2),
    "max_pool2d": lambda self, x: F.max_pool2d(x, 2),
    "chain": lambda self, x: torch.sigmoid(F.avg_pool2d(F.relu(x), 2).flatten(1)).chunk(2, 1)[0],
}


MATH = {
    "add scalar": lambda self, x: self.math.add_scalar(x, 0.3),
    "add large scalar": lambda self, x: self.math.add_scalar(x, 40.0),
    "add negative scalar": lambda self, x: self.math.add_scalar(x, -40.0),
    "mul scalar": lambda self, x: self.math.mul_scalar(x, 1.7),
    "mul negative scalar": lambda self, x: self.math.mul_scalar(x, -0.6),
    "add": lambda self, x: self.math.add(x, x),
    "add_relu": lambda self, x: self.math.add_relu(x, x),
    "mul": lambda self, x: self.math.mul(x, x),
    "cat of FloatFunctional": lambda self, x: self.math.cat([x, x], 1),
}


FUNCTIONS |= MATH


class Pooled(nn.Module):
    """At module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = tq.QuantStub(), tq.DeQuantStub(), nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(F.avg_pool2d(self.conv(self.quant(x)), 2))
