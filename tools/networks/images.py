"""Small networks for pictures and point clouds, built the way that torchvision's and PointNet's code is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tools.models import tq

__all__ = ["VGG", "MobileV2", "MobileV3", "PointNet", "ResNet", "UNet"]


class _Stubs(nn.Module):
    """Where values are quantized and dequantized."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()


class VGG(_Stubs):
    """Convolution, batch norm, ReLU in one Sequential; two linear layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for inputs, outputs in ((3, 8), (8, 16), (16, 16)):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            blocks += [nn.MaxPool2d(2, ceil_mode=True)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 12, 12) to (n, 4)."""
        return self.dequant(self.classifier(self.features(self.quant(x)).flatten(1)))

    def groups(self) -> list[list[str]]:
        """What is fused."""
        return [[f"features.{i + k}" for k in range(3)] for i in (0, 4, 8)] + [["classifier.0", "classifier.1"]]


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))
        self.add_relu = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.add_relu.add_relu(out, x if self.downsample is None else self.downsample(x))


class ResNet(_Stubs):
    """A stem, three basic blocks, one of them with a projection, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(8), nn.ReLU()
        self.layer1 = nn.Sequential(_Basic(8, 8, 1), _Basic(8, 8, 1))
        self.layer2 = nn.Sequential(_Basic(8, 16, 2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 12, 12) to (n, 4)."""
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(self.quant(x))))))
        return self.dequant(self.fc(torch.flatten(self.avgpool(x), 1)))

    def groups(self) -> list[list[str]]:
        """What is fused."""
        found = [["conv1", "bn1", "relu"]]
        for path, block in self.named_modules():
            if isinstance(block, _Basic):
                found.append([f"{path}.{name}" for name in ("conv1", "bn1", "relu")])
                found.append([f"{path}.conv2", f"{path}.bn2"])
                if block.downsample is not None:
                    found.append([f"{path}.downsample.0", f"{path}.downsample.1"])
        return found


def _conv_norm(inputs: int, outputs: int, size: int, act: type[nn.Module] | None, **options: int) -> nn.Sequential:
    padding = (size - 1) // 2
    conv = nn.Conv2d(inputs, outputs, size, padding=padding, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3), *([act()] if act else []))


class _Inverted(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int, act: type[nn.Module], squeeze: bool) -> None:
        super().__init__()
        parts: list[nn.Module] = [_conv_norm(inputs, hidden, 1, act), _conv_norm(hidden, hidden, 3, act, groups=hidden)]
        parts += [_Squeeze(hidden)] if squeeze else []
        self.block = nn.Sequential(*parts, _conv_norm(hidden, outputs, 1, None))
        self.skip_add = torch.ao.nn.quantized.FloatFunctional() if inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if self.skip_add is None else self.skip_add.add(x, self.block(x))


class _Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.relu = nn.Conv2d(channels, 8, 1), nn.ReLU()
        self.fc2, self.sigmoid = nn.Conv2d(8, channels, 1), nn.Hardsigmoid()
        self.mul = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.mul.mul(self.sigmoid(self.fc2(self.relu(self.fc1(self.avgpool(x))))), x)


class MobileV2(_Stubs):
    """Inverted residuals with ReLU, as torch's tutorial changes ReLU6; batch norms of eps 1e-3."""

    activation: type[nn.Module] = nn.ReLU
    squeeze = False

    def __init__(self) -> None:
        super().__init__()
        act = self.activation
        blocks = [_Inverted(a, h, b, act, self.squeeze) for a, h, b in ((8, 16, 8), (8, 24, 12), (12, 24, 12))]
        self.features = nn.Sequential(_conv_norm(3, 8, 3, act, stride=2), *blocks)
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 12, 12) to (n, 4)."""
        return self.dequant(self.classifier(self.features(self.quant(x)).mean([2, 3])))

    def groups(self) -> list[list[str]]:
        """What is fused: with ReLU all three of a block, with another activation two."""
        found = []
        for path, part in self.named_modules():
            if isinstance(part, nn.Sequential) and len(part) > 1 and isinstance(part[1], nn.BatchNorm2d):
                fused = 3 if len(part) == 3 and isinstance(part[2], nn.ReLU) else 2
                found.append([f"{path}.{k}" for k in range(fused)])
            elif isinstance(part, _Squeeze):
                found.append([f"{path}.fc1", f"{path}.relu"])
        return found


class MobileV3(MobileV2):
    """The same with hardswish, and squeeze and excitation with hardsigmoid."""

    activation, squeeze = nn.Hardswish, True


class UNet(_Stubs):
    """Two levels, an up-convolution and a connection past it; the class is the mean of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.cat = torch.ao.nn.quantized.FloatFunctional()
        self.down1, self.down2 = _conv_norm(3, 8, 3, nn.ReLU), _conv_norm(8, 16, 3, nn.ReLU)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.up1, self.out = _conv_norm(16, 8, 3, nn.ReLU), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 12, 12) to (n, 4)."""
        fine = self.down1(self.quant(x))
        coarse = self.down2(self.pool(fine))
        return self.dequant(self.out(self.up1(self.cat.cat([self.up(coarse), fine], 1)))).mean([2, 3])

    def groups(self) -> list[list[str]]:
        """What is fused."""
        return [[f"{path}.{k}" for k in range(3)] for path in ("down1", "down2", "up1")]


class PointNet(_Stubs):
    """All layers are registered first and all batch norms behind them, as PointNet's code does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 16, 1), nn.Conv1d(16, 32, 1)
        self.fc1, self.fc2 = nn.Linear(32, 16), nn.Linear(16, 4)
        self.relu1, self.relu2, self.relu3, self.relu4 = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm1d(16), nn.BatchNorm1d(16), nn.BatchNorm1d(32)
        self.bn4 = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, 24) to (n, 4)."""
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.relu3(self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(x))))))
        x = self.relu4(self.bn4(self.fc1(x.mean(2))))
        return self.dequant(self.fc2(x))

    def groups(self) -> list[list[str]]:
        """What is fused; the linear layer with its batch norm only, torch has no int8 form of all three."""
        return [[f"conv{k}", f"bn{k}", f"relu{k}"] for k in (1, 2, 3)] + [["fc1", "bn4"]]
