"""How the small networks are quantized: the recipes of torch's and torchvision's tutorials, and their variants."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tools.models import engine, tq
from tools.networks import NETWORKS, Network, learn

__all__ = ["ENGINES", "Quantized", "recipes"]

ENGINES = ("fbgemm", "x86", "qnnpack", "onednn")


@dataclass(frozen=True)
class Quantized:
    """An int8 model and the models that hold the same weights, each under a name."""

    int8: nn.Module
    floats: dict[str, nn.Module] = field(default_factory=dict)
    inputs: Tensor | None = None  # what both may be run on


Recipe = Callable[[], Quantized]


def recipes(networks: Iterator[str] | None = None, engines: tuple[str, ...] = ENGINES) -> Iterator[tuple[str, Recipe]]:
    """Every recipe on every network, under a name ``network/engine/recipe``; nothing is made before it is called."""
    for network in (NETWORKS[name] for name in networks or NETWORKS):
        for backend in engines:
            for name, make in (_static(network, backend) if network.static else _dynamic(network, backend)).items():
                yield f"{network.name}/{backend}/{name}", make


def _static(network: Network, backend: str) -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for name, make in (("ptq", _after_training), ("qat", _during_training)):
        found |= {f"{name} {what}": partial(make, network, backend, c) for what, c in _configs(name, backend).items()}
    return found


def _weights(name: str, scheme: torch.qscheme, observer: Any, low: int = -128, high: int = 127) -> Any:
    options = {"dtype": torch.qint8, "qscheme": scheme, "quant_min": low, "quant_max": high}
    if name == "qat":
        return tq.FakeQuantize.with_args(observer=observer, **options)
    return observer.with_args(**options)


def _configs(name: str, backend: str) -> dict[str, tq.QConfig]:
    """Recipe -> qconfig: torch's defaults, and their activations with other weights."""
    default = (tq.get_default_qat_qconfig if name == "qat" else tq.get_default_qconfig)(backend)
    averages = name == "qat"
    channel = tq.MovingAveragePerChannelMinMaxObserver if averages else tq.PerChannelMinMaxObserver
    tensor = tq.MovingAverageMinMaxObserver if averages else tq.MinMaxObserver
    symmetric, affine, whole = torch.per_channel_symmetric, torch.per_channel_affine, torch.per_tensor_symmetric
    weights = {
        "per tensor": _weights(name, whole, tensor),
        "per channel": _weights(name, symmetric, channel),
        "7 bits per channel": _weights(name, symmetric, channel, -64, 63),
        "4 bits per channel": _weights(name, symmetric, channel, -8, 7),
        "4 bits per tensor": _weights(name, whole, tensor, -8, 7),
    }
    if backend in ("fbgemm", "x86"):
        weights["affine per channel"] = _weights(name, affine, channel)
    if name == "ptq":
        weights["histogram"] = _weights(name, whole, tq.HistogramObserver)
    found = {what: tq.QConfig(default.activation, weight) for what, weight in weights.items()}
    if name == "qat":
        found["of version 0"] = tq.get_default_qat_qconfig(backend, 0)
        found["learnable scales"] = tq.QConfig(default.activation, _learnable())
    elif backend == "qnnpack":
        found["symmetric"] = tq.qconfig.default_per_channel_symmetric_qnnpack_qconfig
    return {"default": default, **found}


def _learnable() -> Any:
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

    options = {"observer": tq.MovingAverageMinMaxObserver, "quant_min": -128, "quant_max": 127}
    return _LearnableFakeQuantize.with_args(
        **options, dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, scale=0.02, use_grad_scaling=True
    )


def _configure(model: nn.Module, config: tq.QConfig, name: str) -> None:
    model.qconfig = config
    for module in model.modules():
        if isinstance(module, nn.ConvTranspose2d):  # torch takes no scales per channel here
            weight = _weights(name, torch.per_tensor_symmetric, tq.MinMaxObserver)
            module.qconfig = tq.QConfig(config.activation, weight)


def _after_training(network: Network, backend: str, config: tq.QConfig) -> Quantized:
    model, (inputs, _) = network.trained(), network.samples(64)
    with engine(backend), torch.no_grad():
        fused = tq.fuse_modules(model, network.groups(model))
        _configure(fused, config, "ptq")
        prepared = tq.prepare(fused)
        prepared(inputs)
        int8 = tq.convert(prepared)
    floats = {"float": model, "fused": fused, "prepared": prepared}
    floats["fake-quantized"] = _rounded(int8, tq.fuse_modules(model, network.groups(model)))
    return Quantized(int8, floats, inputs)


def _during_training(network: Network, backend: str, config: tq.QConfig) -> Quantized:
    model, (inputs, _) = network.trained().train(), network.samples(64)
    with engine(backend), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fused = tq.fuse_modules_qat(model, network.groups(model))
        _configure(fused, config, "qat")
        prepared = tq.prepare_qat(fused)
        learnable = [module for module in prepared.modules() if hasattr(module, "enable_param_learning")]
        for module in learnable:
            module.enable_static_estimate()
        prepared(inputs)
        for module in learnable:
            module.enable_param_learning()
        learn(network, prepared, steps=12, rate=3e-3, seed=1).eval()
        floats = {"prepared": copy.deepcopy(prepared)}
        floats["prepared, observers off"] = copy.deepcopy(prepared).apply(tq.disable_observer)
        both = floats["prepared, observers off"]
        floats["prepared, rounding off"] = copy.deepcopy(both).apply(tq.disable_fake_quant)
        int8 = tq.convert(prepared)
    return Quantized(int8, floats, inputs)


def _rounded(int8: nn.Module, fused: nn.Module) -> nn.Module:
    """The fused float model with every weight as fake quantization leaves it."""
    for path, module in int8.named_modules():
        if callable(getattr(module, "weight", None)):
            target = fused.get_submodule(path)
            with torch.no_grad():
                (target[0] if isinstance(target, nn.Sequential) else target).weight.copy_(module.weight().dequantize())
    return fused


def _dynamic(network: Network, backend: str) -> dict[str, Recipe]:
    kinds = {nn.LSTM, nn.GRU, nn.Linear}
    specs: dict[str, Any] = {"dynamic": kinds}
    if backend in ("fbgemm", "x86"):  # the others have no float16
        specs["float16"] = kinds
    if network.name == "bert":
        specs["per channel"] = {nn.Linear: tq.per_channel_dynamic_qconfig}
    return {name: partial(_dynamically, network, backend, spec, name == "float16") for name, spec in specs.items()}


def _dynamically(network: Network, backend: str, spec: Any, half: bool) -> Quantized:
    model, (inputs, _) = network.trained(), network.samples(64)
    with engine(backend):
        int8 = tq.quantize_dynamic(model, spec, dtype=torch.float16 if half else torch.qint8)
    return Quantized(int8, {"float": model}, inputs)
