"""Int8 models for the tests of ONNX out: small networks by torch's recipes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from tools.models import engine, tq
from tools.networks import NETWORKS


@functools.cache
def small(name: str) -> nn.Module:
    """A network of tools/networks, random weights, as ``convert`` or ``quantize_dynamic`` makes it."""
    network = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        groups = network.groups if network.static else None
        dynamic = tq.per_channel_dynamic_qconfig if name == "bert" else torch.qint8
        return quantized(network.build().eval(), network.samples(8)[0], groups, dynamic)


@functools.cache
def trained_resnet() -> nn.Module:
    """The network "resnet" as training leaves it, int8."""
    network = NETWORKS["resnet"]
    return quantized(network.trained(), network.samples(128)[0], network.groups)


def quantized(model: nn.Module, inputs: Tensor, groups=None, dynamic: object = torch.qint8) -> nn.Module:
    """Fused by ``groups(model)``, calibrated on ``inputs`` and converted; without groups for dynamic quantization.

    Activations have 7 bits, so that no CPU saturates; weights are per channel, but for transposed convolutions.
    """
    with engine("fbgemm"), torch.no_grad():
        if groups is None:
            kinds = {nn.Linear, nn.LSTM, nn.GRU}
            if isinstance(dynamic, torch.dtype):
                return tq.quantize_dynamic(model, kinds, dtype=dynamic)
            return tq.quantize_dynamic(model, dict.fromkeys(kinds, dynamic))
        if groups(model):
            tq.fuse_modules(model, groups(model), inplace=True)
        activation = tq.HistogramObserver.with_args(reduce_range=True)
        model.qconfig = tq.QConfig(activation, tq.default_per_channel_weight_observer)
        for module in model.modules():
            if isinstance(module, nn.ConvTranspose2d):
                module.qconfig = tq.QConfig(activation, tq.default_weight_observer)
        prepared = tq.prepare(model)
        prepared(inputs)
        return tq.convert(prepared)
