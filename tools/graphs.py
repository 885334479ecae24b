"""torchvision's models with random weights as int8 graphs: quantized by FX, traced, frozen, scripted."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from tools.models import engine, torchvision_models, tq

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

# name -> (side of the square input, arguments of the class): the smallest that the architecture takes.
GRAPHS: dict[str, tuple[int, dict[str, object]]] = {
    "vgg11_bn": (32, {}),
    "resnet18": (64, {}),
    "resnet50": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_large": (64, {}),
    "efficientnet_b0": (64, {}),
    "densenet121": (64, {}),
    "googlenet": (64, {"aux_logits": False, "init_weights": True}),
    "squeezenet1_1": (64, {}),
    "shufflenet_v2_x1_0": (64, {}),
    "convnext_tiny": (64, {}),
    "vit_b_16": (32, {"image_size": 32}),
}


@dataclass(frozen=True)
class Graph:
    """One architecture as FX quantizes it.

    Attributes:
        prepared: the graph with its observers, which have seen ``images``.
        int8: what ``convert_fx`` makes of it.
        images: a batch.

    """

    prepared: fx.GraphModule
    int8: fx.GraphModule
    images: Tensor


def quantized_graph(name: str, backend: str = "fbgemm", batch: int = 2) -> Graph:
    """Quantize an architecture with random weights; activations have 6 bits, so that hardly a layer saturates."""
    side, options = GRAPHS[name]
    with torch.random.fork_rng(devices=[]), engine(backend), torch.no_grad():
        torch.manual_seed(0)
        model = getattr(torchvision_models(), name)(weights=None, num_classes=10, **options).eval()
        images = torch.randn(batch, 3, side, side)
        for parameter in model.parameters():
            if not parameter.any():  # a head that starts at zero gives nothing to compare
                parameter.normal_(0, 0.02)
        _spread_norms(model, images)
        prepared = prepare_fx(model, _six_bits(), (images,))
        prepared(images)
        return Graph(prepared, convert_fx(copy.deepcopy(prepared)), images)


def _six_bits() -> tq.QConfigMapping:
    """Torch's default, with values of 6 bits: what the int8 model meets may be twice as large before it has 8."""
    mapping = tq.get_default_qconfig_mapping("fbgemm")
    activation = tq.MinMaxObserver.with_args(quant_min=0, quant_max=63)
    mapping.set_global(tq.QConfig(activation=activation, weight=mapping.global_qconfig.weight))
    for kind, config in mapping.object_type_qconfigs.items():
        if isinstance(config.activation(), tq.HistogramObserver):
            mapping.set_object_type(kind, tq.QConfig(activation=activation, weight=config.weight))
    return mapping


def _spread_norms(model: nn.Module, images: Tensor) -> None:
    """Let batch norms have the statistics of the images, as after training: else values fade with the depth."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    model(images)
    for norm in norms:
        norm.eval()


SCRIPTS: dict[str, Callable[[nn.Module, Tensor], torch.jit.ScriptModule]] = {
    "traced": lambda model, images: torch.jit.trace(model, images, check_trace=False),
    "frozen": lambda model, images: torch.jit.freeze(torch.jit.trace(model, images, check_trace=False)),
    "scripted": lambda model, images: torch.jit.script(model),
}
