"""A small int8 model for the examples: convolutions on 16 x 16 images, random data, ten classes."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of torch.ao.quantization
    import torch.ao.quantization as tq


class SmallNet(nn.Module):
    """Two convolutions with ReLU and pooling, and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.classifier = nn.Linear(32, 10)
        self.dequant = tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (n, 3, 16, 16) to logits (n, 10)."""
        return self.dequant(self.classifier(self.features(self.quant(x))))


def example_images(batch: int = 32) -> Tensor:
    return torch.randn(batch, 3, 16, 16)


def quantize(model: SmallNet, engine: str = "fbgemm") -> nn.Module:
    """Post-training static quantization in place, calibrated on random images."""
    torch.backends.quantized.engine = engine
    model.eval()
    tq.fuse_modules(model, [["features.0", "features.1"], ["features.3", "features.4"]], inplace=True)
    # 7-bit activations on every engine: 8-bit ones overflow on CPUs without VNNI.
    model.qconfig = tq.get_default_qconfig("fbgemm")
    tq.prepare(model, inplace=True)
    model(example_images())
    return tq.convert(model, inplace=True)


def int8_model() -> nn.Module:
    torch.manual_seed(0)
    return quantize(SmallNet())
