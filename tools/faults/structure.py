"""Faults around the weights: activations, norms, stubs, sizes, ranges."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn

import qdeq
from tools.faults.subject import Mutant, NoPlaceError, Subject, integers, layers, pick

_NAMES = ("ReLU", "LeakyReLU")


def activation(kind: str) -> Callable[[random.Random, Subject], Mutant]:
    """An activation taken out, or applied twice."""

    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        double = kind == "activation_doubled"
        model = copy.deepcopy(subject.rebuilt)
        # In a residual block's tail the ReLU belongs to the addition, not to a layer.
        names = ("LeakyReLU",) if double else _NAMES
        what = "activation that changes values when applied twice: only ReLU" if double else "activation"
        path = pick(rng, [p for p, m in model.named_modules() if type(m).__name__ in names], what)
        owner = path
        if type(subject.int8.get_submodule(path)) is nn.Identity:
            order = [p for p, _ in subject.int8.named_modules()]
            fused = [p for p in order[: order.index(path)] if "ReLU" in type(subject.int8.get_submodule(p)).__name__]
            owner = fused[-1]
        module = model.get_submodule(path)
        model.set_submodule(path, nn.Sequential(module, copy.deepcopy(module)) if double else nn.Identity())
        return Mutant(subject.int8, model, kind, (owner,))

    return mutate


def norm_twice(rng: random.Random, subject: Subject) -> Mutant:
    """A batch norm that is folded into its convolution, behind it once more."""
    model = copy.deepcopy(subject.rebuilt)
    path, slot = _norm_slot(rng, model)
    channels = model.get_submodule(path).weight.shape[0]
    norm = nn.BatchNorm2d(channels).eval()
    norm.running_mean.normal_(0, 0.3)
    norm.running_var.uniform_(0.3, 3)
    model.set_submodule(slot, norm)
    return Mutant(subject.int8, model, "bn_applied_twice", (path,))


def _norm_slot(rng: random.Random, model: nn.Module) -> tuple[str, str]:
    slots, before = [], ""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            before = path
        elif isinstance(module, nn.Identity) and before:
            slots.append((before, path))
            before = ""
        elif not isinstance(module, nn.Sequential):
            before = ""
    if not slots:
        raise NoPlaceError("no batch norm was folded in")
    return rng.choice(slots)


def training_mode(rng: random.Random, subject: Subject) -> Mutant:
    """One dropout, or one batch norm, left in training mode."""
    model = copy.deepcopy(subject.rebuilt)
    drops = [p for p, m in model.named_modules() if isinstance(m, nn.Dropout)]
    if drops:
        path = rng.choice(drops)
        model.get_submodule(path).train()
        return Mutant(subject.int8, model, "training_mode", (path,))
    try:
        path, slot = _norm_slot(rng, model)
    except NoPlaceError:
        raise NoPlaceError("neither dropout nor batch norm") from None
    model.set_submodule(slot, nn.BatchNorm2d(model.get_submodule(path).weight.shape[0]).train())
    return Mutant(subject.int8, model, "training_mode", (slot,))


def flatten_order(rng: random.Random, subject: Subject) -> Mutant:
    """The first Linear behind a feature map of more than one pixel takes (height, width, channel)."""
    convs = [p for p in layers(subject) if subject.int8.get_submodule(p).weight().dim() == 4]
    linear = next(p for p in layers(subject) if subject.int8.get_submodule(p).weight().dim() == 2)
    model = copy.deepcopy(subject.rebuilt)
    weight = model.get_submodule(linear).weight
    channels = model.get_submodule(convs[-1]).weight.shape[0]
    if weight.shape[1] == channels or weight.shape[1] % channels:
        raise NoPlaceError("the features are one pixel: no order to mistake")
    with torch.no_grad():
        weight.copy_(weight.view(len(weight), channels, -1).transpose(1, 2).reshape(weight.shape))
    return Mutant(subject.int8, model, "flatten_order", (linear,))


def not_finite(rng: random.Random, subject: Subject) -> Mutant:
    """NaN or infinities in a weight or bias."""
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    target = model.get_submodule(path)
    value = target.bias if target.bias is not None and rng.random() < 0.3 else target.weight
    with torch.no_grad():
        places = torch.randperm(value.numel())[: rng.choice([1, 5, value.numel()])]
        value.view(-1)[places] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return Mutant(subject.int8, model, "not_finite", (path,))


def no_partner(rng: random.Random, subject: Subject) -> Mutant:
    """A layer that the float model does not have."""
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    model.set_submodule(path, nn.Identity())
    return Mutant(subject.int8, model, "no_partner", (path,))


def shape_mismatch(rng: random.Random, subject: Subject) -> Mutant:
    """A layer of another size."""
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    weight = model.get_submodule(path).weight
    rows, columns = weight.shape[0] + rng.choice([-3, 1, 16]), weight.shape[1]
    kernel = weight.shape[2:]
    other = nn.Conv2d(columns, rows, kernel, padding=1) if kernel else nn.Linear(columns, rows)
    model.set_submodule(path, other)
    return Mutant(subject.int8, model, "shape_mismatch", (path,))


def activation_added(rng: random.Random, subject: Subject) -> Mutant:
    """An activation that the int8 model does not have."""
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    extra = rng.choice([nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU])()
    model.set_submodule(path, nn.Sequential(model.get_submodule(path), extra))
    return Mutant(subject.int8, model, "activation_added", (path,))


class Affine(nn.Module):
    """``factor * x + shift``: what is left where somebody took a stub for more, or less, than an identity."""

    def __init__(self, factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape."""
        return self.factor * x + self.shift


def quant_stub_lost(rng: random.Random, subject: Subject) -> Mutant:
    """A stub that is no identity in the float model."""
    stubs = {type(m).__name__: (p, m) for p, m in subject.int8.named_modules()}
    model = copy.deepcopy(subject.rebuilt)
    path = stubs[rng.choice(["Quantize", "DeQuantize"])][0]
    scale, zero_point = float(stubs["Quantize"][1].scale), int(stubs["Quantize"][1].zero_point)
    ways = [Affine(1 / scale, zero_point), Affine(1 / scale), Affine(scale), Affine(rng.uniform(1.5, 4), 0.3)]
    model.set_submodule(path, rng.choice(ways))
    return Mutant(subject.int8, model, "quant_stub_lost", (path,))


def clipping(rng: random.Random, subject: Subject) -> Mutant:
    """No fault: one int8 layer represents all but the largest of its values.

    Not the last one: there the largest value is the answer.
    """
    path, int8 = rng.choice(layers(subject)[:-1]), copy.deepcopy(subject.int8)
    layer, seen = int8.get_submodule(path), []
    handle = layer.register_forward_hook(lambda m, args, output: seen.append(output.int_repr()))
    int8(subject.images)
    handle.remove()
    zero_point = int(layer.zero_point)
    # One value of 200 to 500 lies outside.
    largest = torch.sort(seen[0].flatten()).values[-2 - int(seen[0].numel() * rng.uniform(0.002, 0.005))]
    layer.scale *= max(int(largest) - zero_point, 1) / (255 - zero_point)
    return Mutant(int8, copy.deepcopy(subject.rebuilt), "clipping", (path,), subject.images)


def saturation(rng: random.Random, subject: Subject) -> Mutant:
    """Full 8-bit inputs to one int8 layer of large weights; the float model holds the same weights."""
    before = _producers(subject)
    path = pick(rng, list(before), "layer whose input one other module makes")
    int8, model = copy.deepcopy(subject.int8), copy.deepcopy(subject.rebuilt)
    layer, target, producer = int8.get_submodule(path), model.get_submodule(path), int8.get_submodule(before[path])
    quantizes = type(producer).__name__ == "Quantize"
    if quantizes:
        producer.scale, producer.zero_point = producer.scale / 2, producer.zero_point * 2
    else:
        producer.scale = producer.scale / 8
        producer.zero_point = producer.zero_point * 0  # a number, or a buffer
    ints, scale, _ = integers(layer.weight())
    large = torch.where(ints < 0, ints.clamp(max=-rng.randint(110, 127)), ints.clamp(min=rng.randint(110, 127)))
    weight = torch.quantize_per_channel(
        (large * scale).float(), scale.flatten().double(), torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8
    )
    layer.set_weight_bias(weight, layer.bias())
    with torch.no_grad():
        target.weight.copy_(layer.weight().dequantize())
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda m, x: seen.append(x[0].dequantize()))
    int8(subject.images)
    handle.remove()
    with torch.no_grad():
        output = target(seen[0])
    low, high = (0.0 if "ReLU" in type(layer).__name__ else min(0.0, float(output.min()))), float(output.max())
    layer.scale = max(high - low, 1e-3) / 127  # so that the layers behind it see a reduced range, as before
    layer.zero_point = round(-low / layer.scale)
    # Clipped values would be a fault of their own.
    return Mutant(int8, qdeq.dequantize_model(int8, activations="clamp"), "saturation", (path,), subject.images)


def _producers(subject: Subject) -> dict[str, str]:
    """Layer -> the module that alone makes its input: the stub, or the layer and ReLU in front of it."""
    stub = next(p for p, m in subject.int8.named_modules() if type(m).__name__ == "Quantize")
    chain = layers(subject)
    found = {chain[0]: stub}
    for before, path in pairwise(chain):
        # In a residual network only layers of one block follow each other and nothing else.
        if before.startswith("features.") or before.rpartition(".")[0] == path.rpartition(".")[0]:
            found[path] = before
    # A quantized LeakyReLU between two layers has a scale of its own.
    order = [p for p, _ in subject.int8.named_modules()]
    for path, before in found.items():
        between = order[order.index(before) + 1 : order.index(path)] if before != stub else []
        own = [p for p in between if type(subject.int8.get_submodule(p)).__name__ == "LeakyReLU"]
        found[path] = own[-1] if own else before
    return found


MUTATIONS: dict[str, Callable[[random.Random, Subject], Mutant]] = {
    "activation_lost": activation("activation_lost"),
    "activation_doubled": activation("activation_doubled"),
    "activation_added": activation_added,
    "bn_applied_twice": norm_twice,
    "training_mode": training_mode,
    "flatten_order": flatten_order,
    "quant_stub_lost": quant_stub_lost,
    "not_finite": not_finite,
    "no_partner": no_partner,
    "shape_mismatch": shape_mismatch,
    "clipping": clipping,
    "saturation": saturation,
}
