"""A small network in int8 with all that a diagnosis looks at: fused layers, dropout, features of 2 x 2 pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.ao.quantization import (
    DeQuantStub,
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QuantStub,
    convert,
    fuse_modules,
    get_default_qconfig,
    prepare,
)

from tools.faults.subject import Subject


class SmallNet(nn.Module):
    """Three convolutions (the last two of one shape) and two linears, on (n, 3, 16, 16)."""

    def __init__(self, batch_norm: bool = True) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for channels, out in ((3, 16), (16, 16), (16, 16)):
            blocks += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out) if batch_norm else nn.Identity()]
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Linear(64, 32), nn.LeakyReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
        self.quant, self.dequant = QuantStub(), DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 3, 16, 16) to (n, 10)."""
        return self.dequant(self.classifier(self.features(self.quant(x)).flatten(1)))


FULL_RANGE = QConfig(
    activation=MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=False),
    weight=PerChannelMinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_channel_symmetric),
)
__all__ = ["FULL_RANGE", "HistogramObserver", "SmallNet", "small_int8", "small_subject"]


def small_float(seed: int, batch_norm: bool = True) -> SmallNet:
    """A network with weights that no initialisation gives: heavy-tailed, biases everywhere."""
    generator = torch.Generator().manual_seed(seed)
    model = SmallNet(batch_norm).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                values = torch.randn(module.weight.shape, generator=generator)
                spread = 0.5 + torch.rand((len(values), *[1] * (values.dim() - 1)), generator=generator)
                module.weight.copy_(values * values.abs().sqrt() * spread * fan_in**-0.5)
                module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.3)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_var.uniform_(0.5, 2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.weight.uniform_(0.5, 2, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    return model


def small_int8(seed: int, batch_norm: bool = True, qconfig: QConfig | None = None) -> nn.Module:
    """The network converted; calibrated on random images."""
    model = small_float(seed, batch_norm)
    triples = [[f"features.{i}", f"features.{i + 1}", f"features.{i + 2}"] for i in (0, 4, 8)]
    if batch_norm:
        model = fuse_modules(model, triples)
    model.qconfig = qconfig or get_default_qconfig("fbgemm")
    prepared = prepare(model)
    prepared(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(seed)))
    return convert(prepared)


def small_subject(seed: int = 0, batch_norm: bool = True) -> Subject:
    """The small network as a subject for mutations."""
    import qdeq

    int8 = small_int8(seed, batch_norm)
    other = qdeq.dequantize_model(small_int8(seed + 1000, batch_norm))
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return Subject("small network", int8, qdeq.dequantize_model(int8), other, images)
