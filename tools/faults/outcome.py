"""Faults of int8 models whose weights are right: how they were calibrated, and what the forwards do beside the layers.

Each is put into a small trained network: the model is quantized with the mistake in it, as torch's recipes do.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.faults.subject import Mutant, NoPlaceError, pick
from tools.models import engine, tq
from tools.networks import NETWORKS, Network

__all__ = ["OUTCOME_FAULTS", "SUBJECTS", "damaged", "outcome_mutant"]

SUBJECTS = ("vgg", "resnet", "mobilenet_v2", "unet", "pointnet")
CALIBRATED_ON, RUN_ON = 64, 96
# Draws of a place, and the noise of the output, relative to its power, from which on the models do not agree.
DRAWS, MOST_NOISE = 30, 0.15
_RANGE = tq.MinMaxObserver.with_args(dtype=torch.quint8, reduce_range=True)
PER_CHANNEL = tq.QConfig(activation=_RANGE, weight=tq.default_per_channel_weight_observer)
PER_TENSOR = tq.QConfig(activation=_RANGE, weight=tq.default_weight_observer)


def prepared(network: Network, model: nn.Module, qconfig: tq.QConfig = PER_CHANNEL) -> nn.Module:
    """A fused copy with observers that have seen nothing."""
    groups = [[path for path in group if _fusable(model.get_submodule(path))] for group in network.groups(model)]
    fused = tq.fuse_modules(copy.deepcopy(model), [group for group in groups if len(group) > 1])
    fused.qconfig = qconfig
    for module in fused.modules():
        if isinstance(module, nn.ConvTranspose2d):  # torch takes no scales per channel here
            module.qconfig = PER_TENSOR
    return tq.prepare(fused)


def _fusable(module: nn.Module) -> bool:
    return not isinstance(module, nn.Hardtanh)  # nn.ReLU6 is one


def calibrated(network: Network, model: nn.Module, inputs: Tensor, qconfig: tq.QConfig = PER_CHANNEL) -> nn.Module:
    """The same after a run on inputs."""
    found = prepared(network, model, qconfig)
    with torch.no_grad():
        found(inputs)
    return found


def convert(model: nn.Module) -> nn.Module:
    """``tq.convert``, without its warning of observers that saw nothing: some functionals are never called."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "must run observer before calling calculate_qparams")
        return tq.convert(model)


def observers(model: nn.Module) -> dict[str, Any]:
    """Path of a module -> the observer of its output; those that saw nothing are left out."""
    found = {}
    for path, module in model.named_modules():
        observer = getattr(module, "activation_post_process", None)
        if isinstance(observer, tq.MinMaxObserver) and float(observer.max_val) > float(observer.min_val):
            found[path] = observer
    return found


def never_calibrated(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """No run between ``prepare`` and ``convert``."""
    int8 = convert(prepared(network, model))
    paths = tuple(observers(calibrated(network, model, inputs)))
    return Mutant(int8, model, "never_calibrated", paths, inputs if rng.random() < 0.5 else None)


def _one_observer(
    rng: random.Random,
    network: Network,
    model: nn.Module,
    inputs: Tensor,
    kind: str,
    change: Callable[[Any, float], None],
) -> Mutant:
    found = calibrated(network, model, inputs)
    path = pick(rng, [path for path in observers(found) if path != "quant"])
    observer = observers(found)[path]
    change(observer, max(-float(observer.min_val), float(observer.max_val)))
    return Mutant(convert(found), model, kind, (path,))


def calibrated_wide(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """One observer saw one value that is 64 to 256 times as large as all others."""
    factor = 2 ** rng.uniform(6, 8)
    return _one_observer(
        *(rng, network, model, inputs, "calibrated_wide"),
        lambda observer, largest: observer(torch.tensor([-largest, largest]) * factor),
    )


def calibrated_narrow(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """One observer saw a tenth to a thirtieth of the range."""
    factor = 1 / rng.uniform(10, 30)

    def narrow(observer: Any, largest: float) -> None:
        observer.min_val.mul_(factor)
        observer.max_val.mul_(factor)

    return _one_observer(rng, network, model, inputs, "calibrated_narrow", narrow)


def input_range(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """Calibrated on inputs of another scale: as if of 0 to 1 in place of 0 to 255, or the other way round."""
    factor = rng.choice([255.0, 50.0, 1 / 20, 1 / 255])
    return Mutant(convert(calibrated(network, model, inputs * factor)), model, "input_range", ("quant",))


# A batch norm with a ReLU behind it, and the layer that alone takes what comes of it.
_BEHIND_NORMS = {
    "vgg": (("features.1", "features.4"), ("features.5", "features.8")),
    "resnet": tuple((f"{block}.bn1", f"{block}.conv2") for block in ("layer1.0", "layer1.1", "layer2.0")),
    "mobilenet_v2": tuple(
        (f"features.{k}.block.{i}.1", f"features.{k}.block.{i + 1}.0") for k in (1, 2, 3) for i in (0, 1)
    ),
    "unet": (("down1.1", "down2.0"),),
    "pointnet": (("bn1", "conv2"), ("bn2", "conv3")),
}


def levels_collapsed(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """One scale for all channels of a layer, of which one has a large weight on an input that is always zero."""
    norm, path = rng.choice(_BEHIND_NORMS[network.name])
    layer, dead = model.get_submodule(path), rng.randrange(len(model.get_submodule(norm).weight))
    with torch.no_grad():
        model.get_submodule(norm).weight[dead], model.get_submodule(norm).bias[dead] = 0.0, -1.0
        depthwise = layer.weight.shape[1] == 1
        row = dead if depthwise else rng.randrange(len(layer.weight))
        layer.weight[row, 0 if depthwise else dead] = float(layer.weight.abs().max()) * 2 ** rng.uniform(7.5, 8.5)
    return Mutant(convert(calibrated(network, model, inputs, PER_TENSOR)), model, "levels_collapsed", (path,))


def _behind(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Let a module change its output once more."""
    module.register_forward_hook(lambda m, args, output: change(output))


def differs_before(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """The float model's forward scales or shifts its input."""
    int8, other = convert(calibrated(network, model, inputs)), copy.deepcopy(model)
    change = rng.choice(
        [lambda x: x / 255, lambda x: 2 * x - 3, lambda x: x.flip(-1), lambda x: 10 * x, lambda x: (x - 0.5) / 0.2]
    )
    other.register_forward_pre_hook(lambda m, args: tuple(map(change, args)))
    first = next(path for path, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d))
    return Mutant(int8, other, "differs_before", (first,))


# A module without weights, and the layers that take what comes of it.
_PLACES = {
    "vgg": {"features.3": ("features.4",), "features.11": ("classifier.0",), "classifier.2": ("classifier.3",)},
    "resnet": {"avgpool": ("fc",)},
    "mobilenet_v2": {"classifier.0": ("classifier.1",)},
    "unet": {"pool": ("down2.0",)},
    "pointnet": {"relu1": ("conv2",), "relu2": ("conv3",), "relu4": ("fc2",)},
}


def differs_between(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """The float model's forward does something more between two layers."""
    int8, other = convert(calibrated(network, model, inputs)), copy.deepcopy(model)
    place, behind = rng.choice(list(_PLACES[network.name].items()))
    change = rng.choice([lambda x: 3 * x, lambda x: x / 4, lambda x: x.flip(1), lambda x: -x, lambda x: x.roll(1, 1)])
    _behind(other.get_submodule(place), change)
    return Mutant(int8, other, "differs_between", behind)


def differs_after(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """The float model's forward does something more behind its last layer."""
    int8, other = convert(calibrated(network, model, inputs)), copy.deepcopy(model)
    change = rng.choice(
        [lambda x: F.softmax(x, 1), lambda x: F.log_softmax(x, 1), lambda x: 3 * x, lambda x: -x, lambda x: x[:, :2]]
    )
    _behind(other, change)
    last = [path for path, module in model.named_modules() if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)]
    return Mutant(int8, other, "differs_after", (last[-1],))


def draws_at_random(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """Either model's forward calls dropout without asking whether it is trained."""
    models = [convert(calibrated(network, model, inputs)), copy.deepcopy(model)]
    place = rng.choice(list(_PLACES[network.name]))
    _behind(rng.choice(models).get_submodule(place), lambda x: _drop(x, 0.7))
    return Mutant(models[0], models[1], "draws_at_random", ("",))


def _drop(x: Tensor, share: float) -> Tensor:
    if not x.is_quantized:
        return F.dropout(x, share, training=True)
    dropped = F.dropout(x.dequantize(), share, training=True)
    return torch.quantize_per_tensor(dropped, x.q_scale(), x.q_zero_point(), x.dtype)


# What clamps channels_last tensors, which qnnpack computes wrongly.
_CLAMPS: tuple[Callable[[], nn.Module], ...] = (nn.ReLU6, lambda: nn.Hardtanh(0.0, 5.0), lambda: nn.Hardtanh(0.0, 4.0))


def int8_kernel_wrong(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """One ReLU of both models is one that ends at 4, 5 or 6, and qnnpack runs it."""
    path = pick(rng, [path for path, module in model.named_modules() if isinstance(module, nn.ReLU)])
    owner, _, name = path.rpartition(".")
    model.get_submodule(owner)._modules[name] = rng.choice(_CLAMPS)()
    with engine("qnnpack"):
        int8 = convert(calibrated(network, model, inputs, PER_TENSOR))
    return Mutant(int8, model, "int8_kernel_wrong", (path,), engine="qnnpack")


def four_bits(rng: random.Random, network: Network, model: nn.Module, inputs: Tensor) -> Mutant:
    """One layer's weights have 16 levels a channel, all others 255."""
    found = calibrated(network, model, inputs)
    layers = [
        path
        for path, m in found.named_modules()
        if hasattr(m, "qconfig") and (hasattr(m, "weight") or isinstance(m, nn.Sequential)) and path in observers(found)
    ]
    path = pick(rng, [path for path in layers if not isinstance(found.get_submodule(path), nn.ConvTranspose2d)])
    weight = tq.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-8, quant_max=7
    )
    layer = found.get_submodule(path)
    for module in layer.modules():
        module.qconfig = tq.QConfig(activation=_RANGE, weight=weight)
    return Mutant(convert(found), model, "four_bits", (path,))


def damaged(name: str, seed: int) -> Mutant:
    """One module of a trained network quantized badly: weights of four bits, or an output calibrated badly."""
    network, rng = NETWORKS[name], random.Random(f"damaged {name} {seed}")
    inputs, _ = network.samples(CALIBRATED_ON, 10**7 + seed)
    damage = (four_bits, calibrated_wide, calibrated_narrow)[seed % 3]
    with engine("fbgemm"):
        mutant = damage(rng, network, network.trained(seed % 2), inputs)
    mutant.data = network.samples(RUN_ON, 2 * 10**7 + seed)  # type: ignore[assignment]
    return mutant


OUTCOME_FAULTS: dict[str, Callable[[random.Random, Network, nn.Module, Tensor], Mutant]] = {
    function.__name__: function
    for function in (
        *(never_calibrated, input_range, calibrated_wide, calibrated_narrow, levels_collapsed),
        *(differs_before, differs_between, differs_after, draws_at_random, int8_kernel_wrong),
    )
}


def outcome_mutant(kind: str, name: str, seed: int) -> Mutant:
    """Put a fault into a trained network, at a place and with values drawn from ``seed``; with data to run it on.

    A place where the fault changes the output little is drawn again: there nobody would ask.
    """
    network, rng = NETWORKS[name], random.Random(f"{kind} {name} {seed}")
    torch.manual_seed(seed)
    inputs, _ = network.samples(CALIBRATED_ON, 10**7 + seed)
    for _ in range(DRAWS):
        with engine("fbgemm"):
            mutant = OUTCOME_FAULTS[kind](rng, network, network.trained(seed % 2), inputs)
        if kind != "never_calibrated" or mutant.data is not None:
            mutant.data = network.samples(RUN_ON, 2 * 10**7 + seed)  # type: ignore[assignment]
        if kind in ("never_calibrated", "differs_after") or _changes_the_output(mutant, inputs):
            return mutant
    raise NoPlaceError("no place where it changes the output")


def _changes_the_output(mutant: Mutant, inputs: Tensor) -> bool:
    with torch.no_grad(), engine(mutant.engine):
        ours, theirs = mutant.int8(inputs), mutant.float_model(inputs)
    return float((ours - theirs).square().sum()) > MOST_NOISE * float(ours.square().sum())
