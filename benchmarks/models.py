"""Whole int8 models for the benchmarks, with random weights, and what a careful user writes by hand to undo them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq import dequantize_model
from qdeq.demo.vision import import_torchvision

__all__ = ["float_torchvision", "float_vgg11", "hand_layers", "hand_model", "quantized_vgg11", "torchvision_model"]

VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


def _fill(layer: Any) -> None:
    shape = layer.weight().shape
    scales = (torch.rand(shape[0]) * 0.01 + 1e-4).double()
    integers = torch.randint(-128, 128, shape, dtype=torch.int8)
    zeros = torch.zeros(shape[0], dtype=torch.int64)
    layer.set_weight_bias(torch._make_per_channel_quantized_tensor(integers, scales, zeros, 0), torch.randn(shape[0]))


def _features(conv: type[nn.Module], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in VGG11:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [conv(channels, width, 3, padding=1), activation()]
        channels = width
    return nn.Sequential(*layers)


def quantized_vgg11(hidden: int = 4096) -> nn.Module:
    """VGG11 for 224 x 224 with a Linear(25088, hidden)-ReLU-Linear(hidden, 10) classifier; 112 M weights at 4096."""
    features = _features(nniq.ConvReLU2d, nn.Identity)
    classifier = nn.Sequential(nniq.LinearReLU(25088, hidden), nn.Identity(), nnq.Linear(hidden, 10))
    model = nn.Sequential(nnq.Quantize(0.02, 128, torch.quint8), features, nn.Flatten(), classifier)
    for module in model.modules():
        if isinstance(module, nnq.Conv2d | nnq.Linear):
            _fill(module)
    return calibrate(model.eval())


@torch.no_grad()
def calibrate(model: nn.Module) -> nn.Module:
    """Give each layer of a VGG11 the output scale that one random image of 64 x 64 asks for."""
    rebuilt = dequantize_model(model)
    values = torch.randn(1, 3, 64, 64)
    for path, module in model[1].named_modules():
        if path:
            values = rebuilt[1].get_submodule(path)(values)
        if isinstance(module, nniq.ConvReLU2d):
            module.scale, module.zero_point = float(values.max()) / 255, 0
    values = values.mean((2, 3)).repeat_interleave(49, 1)
    for layer, module in zip(rebuilt[3], model[3], strict=True):
        values = layer(values)
        if isinstance(module, nnq.Linear):
            spread = 0 if isinstance(module, nniq.LinearReLU) else 128
            module.scale, module.zero_point = float(values.abs().max()) / (255 - spread), spread
    return model


def float_vgg11(hidden: int = 4096) -> nn.Module:
    """The float class that :func:`quantized_vgg11` stands for."""
    features = _features(nn.Conv2d, nn.ReLU)
    classifier = nn.Sequential(nn.Linear(25088, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    return nn.Sequential(nn.Identity(), features, nn.Flatten(), classifier)


def float_torchvision(name: str) -> nn.Module:
    """The float class that :func:`torchvision_model` stands for, with its norms."""
    return import_torchvision().models.__dict__[name](weights=None)


def torchvision_model(name: str) -> nn.Module:
    """A quantizable torchvision model, converted with default qparams: its weights are random, its size is real."""
    vision = import_torchvision()
    torch.manual_seed(0)
    model = vision.models.quantization.__dict__[name](weights=None, quantize=False).eval()
    model.fuse_model()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    prepared = torch.ao.quantization.prepare(model)
    with torch.no_grad():
        prepared(torch.randn(1, 3, 64, 64))
    return torch.ao.quantization.convert(prepared)


def _float_layer(module: Any) -> nn.Module:
    if isinstance(module, nnq.Linear):
        return nn.Linear(module.in_features, module.out_features, device="meta")
    return nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        device="meta",
    )


def _fill_by_hand(layer: Any, module: Any) -> None:
    weight = module.weight().dequantize().contiguous()
    # A depthwise weight is contiguous with the strides of channels_last, too; torch would then round otherwise.
    layer.weight = nn.Parameter(weight.view(-1).view(weight.shape))
    bias = module.bias()
    layer.bias = None if bias is None else nn.Parameter(bias.detach().clone())


def hand_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Dequantize every layer: float layers on meta, assigned weights, cloned biases. Not a model yet."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nnq.Conv2d | nnq.Linear):
            layers[name] = _float_layer(module)
            _fill_by_hand(layers[name], module)
    return layers


def hand_model(model: nn.Module, float_class: Callable[[], nn.Module]) -> nn.Module:
    """The correct loop by hand: the float class on meta, every weight and bias assigned, folded norms taken out.

    It knows the float class and what quantization did to it. Where the class is made on the CPU, as is usual, its
    random initialisation alone takes longer than all this.
    """
    with torch.device("meta"):
        result = float_class()
    quantized = {name: module for name, module in model.named_modules() if isinstance(module, nnq.Conv2d | nnq.Linear)}
    for name, module in list(result.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            result.set_submodule(name, nn.Identity())
        elif name in quantized:
            _fill_by_hand(module, quantized[name])
    return result.eval()
