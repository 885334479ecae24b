"""torchvision's quantizable models with random weights, converted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qdeq.demo.vision import import_torchvision

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch.ao.quantization as tq

# name -> side of the square input: the smallest that the architecture takes without empty feature maps.
SIDES = {
    "googlenet": 64,
    "inception_v3": 80,
    "mobilenet_v2": 64,
    "mobilenet_v3_large": 64,
    "resnet18": 64,
    "resnet50": 32,
    "resnext101_32x8d": 32,
    "resnext101_64x4d": 32,
    "shufflenet_v2_x0_5": 64,
    "shufflenet_v2_x1_0": 64,
    "shufflenet_v2_x1_5": 64,
    "shufflenet_v2_x2_0": 64,
}
_AUXILIARY = ("googlenet", "inception_v3")


@contextmanager
def engine(name: str) -> Iterator[None]:
    """Let torch quantize with this engine inside a ``with`` block."""
    previous = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = previous


def float_model(name: str, num_classes: int = 10) -> nn.Module:
    """The plain float class, random weights, without auxiliary classifiers."""
    models = torchvision_models()
    options = {"aux_logits": False, "init_weights": False} if name in _AUXILIARY else {}
    return getattr(models, name)(weights=None, num_classes=num_classes, **options).eval()


def torchvision_models():
    """``torchvision.models``; its import touches no global state."""
    return import_torchvision().models


def example(name: str, batch: int = 2) -> Tensor:
    """A random batch of the size that ``name`` takes here."""
    return torch.randn(batch, 3, SIDES[name], SIDES[name])


def converted_model(name: str, *, seven_bits: bool = True, num_classes: int = 10, backend: str = "fbgemm") -> nn.Module:
    """Fused, calibrated on random data and converted; ``seven_bits``: activations in 0..127, free of saturation."""
    torch.manual_seed(sum(map(ord, name)))
    models = torchvision_models()
    options = {"aux_logits": False, "init_weights": False} if name in _AUXILIARY else {}
    model = getattr(models.quantization, name)(weights=None, quantize=False, num_classes=num_classes, **options).eval()
    _randomise_batch_norms(model)
    with engine(backend):
        model.fuse_model(is_qat=False)
        model.qconfig = tq.QConfig(
            activation=tq.MinMaxObserver.with_args(reduce_range=seven_bits),
            weight=tq.default_per_channel_weight_observer,
        )
        tq.prepare(model, inplace=True)
        with torch.no_grad():
            model(example(name, 4))
        with warnings.catch_warnings():
            # mobilenet_v2's blocks without a shortcut hold a FloatFunctional that nothing calls.
            warnings.filterwarnings("ignore", "must run observer before calling calculate_qparams")
            tq.convert(model, inplace=True)
    return model


def _randomise_batch_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.5)
