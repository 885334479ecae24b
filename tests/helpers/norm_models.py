"""Small float models in which batch norms stand in unusual places."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.models import tq


class Stubs(nn.Module):
    """What can be quantized; ``groups`` are what fusing takes."""

    groups: tuple[tuple[str, ...], ...] = ()
    shape: tuple[int, ...] = (4, 3, 12)

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()

    def example(self) -> Tensor:
        return torch.randn(self.shape)


class Points(Stubs):
    """All layers are registered first, then all norms (PointNet); ``traced`` is whether the forward can be."""

    groups = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("fc1", "bn4"))

    def __init__(self, *, bias: bool = True, traced: bool = True, widths: tuple[int, ...] = (8, 8, 16, 8)) -> None:
        super().__init__()
        first, second, third, fourth = widths
        self.traced = traced
        self.conv1 = nn.Conv1d(3, first, 1, bias=bias)
        self.conv2 = nn.Conv1d(first, second, 1, bias=bias)
        self.conv3 = nn.Conv1d(second, third, 1, bias=bias)
        self.fc1, self.fc2 = nn.Linear(third, fourth, bias=bias), nn.Linear(fourth, 4)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(first), nn.BatchNorm1d(second), nn.BatchNorm1d(third)
        self.bn4 = nn.BatchNorm1d(fourth)

    def forward(self, x: Tensor) -> Tensor:
        x = self.quant(x)
        if not self.traced and x.shape[0] < 1:
            return x
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x))).max(2)[0].view(-1, self.conv3.out_channels)
        x = F.relu(self.bn4(self.fc1(x)))
        return self.dequant(self.fc2(x))


class DenseLayer(nn.Module):
    """Norm before convolution; only the second norm follows one."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 8, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.cat = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return self.cat.cat([x, new], 1)


class Dense(Stubs):
    """A DenseNet of two layers, with a head."""

    groups = (("conv0", "norm0"), ("layers.0.conv1", "layers.0.norm2"), ("layers.1.conv1", "layers.1.norm2"))
    shape = (2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.norm0 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(DenseLayer(8), DenseLayer(16))
        self.norm5, self.fc = nn.BatchNorm2d(24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(torch.relu(self.norm0(self.conv0(self.quant(x)))))
        return self.dequant(self.fc(torch.relu(self.norm5(x)).mean((2, 3))))


def _block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(Stubs):
    """Down, up by a transposed convolution with a norm of its own, and the copy from before."""

    groups = (("down.0", "down.1", "down.2"), ("low.0", "low.1", "low.2"), ("up", "norm"), ("out.0", "out.1", "out.2"))
    shape = (2, 3, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.out = _block(3, 8), _block(8, 12), _block(16, 8)
        self.up, self.norm = nn.ConvTranspose2d(12, 8, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.cat = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.quant(x))
        up = self.norm(self.up(self.low(F.max_pool2d(x, 2))))
        return self.dequant(self.out(self.cat.cat([up, x], 1)))


def trained(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights that are far from the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model.eval()
