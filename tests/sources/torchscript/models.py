"""Small quantized models for scripts: a static network with the operations that eager ones have, a dynamic one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from tests.helpers.models import quantize
from tests.helpers.saturation import spread
from tools.models import engine, tq


class Static(nn.Module):
    """Convolutions with and without their ReLU and batch norm, functionals, pooling, a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.branch = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Hardswish())
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1)
        self.add, self.scale = nn.quantized.FloatFunctional(), nn.quantized.FloatFunctional()
        self.join = nn.quantized.FloatFunctional()
        self.up.qconfig = tq.default_qconfig  # torch has no per channel observer for it
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.conv(self.quant(x))))
        x = self.add.add_relu(x, self.branch(x))
        x = self.up(nn.functional.max_pool2d(x, 2))
        x = self.join.cat([self.scale.mul_scalar(x, 2.0), x], dim=1)
        return self.dequant(self.fc(torch.flatten(self.pool(x), 1)))


class Sequences(nn.Module):
    """An embedding, an LSTM of two layers and directions, a GRU, and two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 6, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(12, 5)
        self.norm = nn.LayerNorm(5)
        self.fc, self.fc16 = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.lstm(self.embedding(tokens))
        x, hidden = self.gru(x)
        return self.fc16(torch.relu(self.fc(self.norm(x)))) + hidden.mean()


def static(seed: int = 0) -> nn.Module:
    """:class:`Static` fused and converted; no CPU saturates, whatever the input."""
    torch.manual_seed(seed)
    model = Static()
    for statistics in (model.bn.running_mean.normal_, lambda: model.bn.running_var.uniform_(0.5, 2)):
        statistics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no observer runs for the functional that multiplies by a number
        return quantize(spread(model.eval()), images(8), groups=[["conv", "bn", "relu"]])


def sequences(seed: int = 0) -> nn.Module:
    """:class:`Sequences` with dynamic int8, but for a float16 linear and an embedding of bytes."""
    torch.manual_seed(seed)
    dynamic = tq.default_dynamic_qconfig
    kinds = {"lstm": dynamic, "gru": dynamic, "fc": dynamic, "fc16": tq.float16_dynamic_qconfig}
    kinds["embedding"] = tq.float_qparams_weight_only_qconfig
    with engine("fbgemm"):
        return tq.quantize_dynamic(Sequences().eval(), kinds)


def images(batch: int = 2) -> Tensor:
    """Inputs of :func:`static`."""
    return torch.randn(batch, 3, 8, 8)


def tokens() -> Tensor:
    """Inputs of :func:`sequences`."""
    return torch.randint(0, 10, (2, 5))
