"""Small converted models for the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tests.helpers.saturation import spread
from tools.models import engine, tq


class SmallVGG(nn.Module):
    """The shape of VGG11, small: conv features, a Linear-ReLU-Dropout-Linear classifier, stubs around them."""

    def __init__(self, *, bn: bool = False, channels: Sequence[int] = (8, 16), conv_bias: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs in channels:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=conv_bias))
            if bn:
                layers.append(nn.BatchNorm2d(outputs))
            layers += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
            inputs = outputs
        self.quant = tq.QuantStub()
        self.features = nn.Sequential(*layers)
        side = 16 // 2 ** len(channels)
        self.classifier = nn.Sequential(
            nn.Linear(inputs * side * side, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10)
        )
        self.dequant = tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.quant(x))
        return self.dequant(self.classifier(x.flatten(1)))

    def fuse_groups(self) -> list[list[str]]:
        group: list[str] = []
        groups: list[list[str]] = []
        for name, layer in self.features.named_children():
            if isinstance(layer, nn.MaxPool2d):
                groups.append(group)
                group = []
            else:
                group.append(f"features.{name}")
        return [*groups, ["classifier.0", "classifier.1"]]

    def example(self, batch: int = 4) -> Tensor:
        return torch.randn(batch, 3, 16, 16)


def quantize(model: nn.Module, *examples: Tensor, groups=None, backend: str = "fbgemm") -> nn.Module:
    """Post-training static quantization of ``model`` in place, calibrated on ``examples``."""
    model.eval()
    with engine(backend):
        if groups:
            tq.fuse_modules(model, groups, inplace=True)
        model.qconfig = tq.get_default_qconfig(backend)
        tq.prepare(model, inplace=True)
        with torch.no_grad():
            model(*examples)
        tq.convert(model, inplace=True)
    return model


def small_vgg(
    *, bn: bool = False, fuse: bool = True, seed: int = 0, same_on_every_cpu: bool = False, conv_bias: bool = True
) -> nn.Module:
    """A converted :class:`SmallVGG` with random weights; the BN statistics are random, too.

    With ``same_on_every_cpu`` no CPU saturates, whatever the input.
    """
    torch.manual_seed(seed)
    model = SmallVGG(bn=bn, conv_bias=conv_bias)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_()
    model.eval()
    if same_on_every_cpu:
        spread(model)
    return quantize(model, model.example(16), groups=model.fuse_groups() if fuse else None)


def bits(tensor: Tensor) -> Tensor:
    """The int32 view of a float32 tensor: what exactness is measured on."""
    assert tensor.dtype == torch.float32
    return tensor.detach().contiguous().view(torch.int32)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    different = int((bits(actual) != bits(expected)).sum())
    assert different == 0, f"{different} of {expected.numel()} values differ"


def frozen_state(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    flags = [(name, module.training) for name, module in model.named_modules()]
    return buffer.getvalue() + repr(flags).encode()
