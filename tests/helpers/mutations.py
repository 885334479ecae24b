"""Faults put into a correct rebuild on purpose: each returns what :func:`qdeq.explain` should name first."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn


@dataclass
class Subject:
    """An int8 model, its correct rebuild, a rebuild of another training run of the same network, and inputs."""

    name: str
    int8: nn.Module
    rebuilt: nn.Module
    other: nn.Module | None = None
    images: torch.Tensor | None = None


@dataclass
class Mutant:
    """A faulty pair of models and the finding it deserves."""

    int8: nn.Module
    float_model: nn.Module
    kind: str
    modules: tuple[str, ...]  # any of them is right
    data: torch.Tensor | None = None  # what both have to be run on for it to show


class NotApplicable(Exception):
    """This subject has no place for the fault; says why."""


def layers(subject: Subject) -> list[str]:
    return [path for path, module in subject.int8.named_modules() if callable(getattr(module, "weight", None))]


def integers(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    view = (-1, *[1] * (q.dim() - 1))
    if q.qscheme() == torch.per_tensor_affine:
        count = q.shape[0]
        scale, zero = torch.full((count,), q.q_scale()), torch.full((count,), q.q_zero_point())
    else:
        scale, zero = q.q_per_channel_scales(), q.q_per_channel_zero_points()
    return q.int_repr().int(), scale.clone().view(view), zero.clone().view(view)


def pick(rng: random.Random, items: list[str], what: str = "such layer") -> str:
    if not items:
        raise NotApplicable(f"no {what}")
    return rng.choice(items)


def with_weight(
    change: Callable[[random.Random, nn.Module, nn.Module], torch.Tensor],
    kind: str,
    where: Callable[..., bool] | None = None,
) -> Callable[[random.Random, Subject], Mutant]:
    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        path = pick(
            rng, [p for p in layers(subject) if where is None or where(subject.int8.get_submodule(p))], "square weight"
        )
        model = copy.deepcopy(subject.rebuilt)
        target = model.get_submodule(path)
        with torch.no_grad():
            target.weight.copy_(change(rng, subject.int8.get_submodule(path), target))
        return Mutant(subject.int8, model, kind, (path,))

    return mutate


def _initial(target: nn.Module) -> torch.Tensor:
    weight = torch.empty_like(target.weight)
    return nn.init.kaiming_uniform_(weight, a=5**0.5)


def _partly(rng, q, target):
    weight, count = target.weight.clone(), target.weight.shape[0]
    keep = rng.randint(max(1, count // 10), max(1, count * 9 // 10))
    weight[keep:] = _initial(target)[keep:]
    return weight


def _formula(make):
    return lambda rng, q, target: make(rng, q, *integers(q.weight()))


def _one_channel(rng, q, ints, s, z):
    return (ints - z) * s.flatten()[rng.randrange(s.numel())]


def _wrong_axis(rng, q, ints, s, z):
    view = [1] * ints.dim()
    view[1] = -1
    return (ints - z) * s.reshape(view)


def _wrong_scale(rng, q, ints, s, z):
    other = (
        s.roll(rng.randint(1, len(s) - 1), 0) if rng.random() < 0.5 else s * rng.choice([0.25, 0.5, 1.5, 2.0, 127.0])
    )
    return (ints - z) * other


def _square(q) -> bool:
    return q.weight().dim() >= 2 and q.weight().shape[0] == q.weight().shape[1] > 1


def _can_transpose(q) -> bool:
    return _square(q) or (q.weight().dim() == 4 and q.weight().shape[-1] > 1)


def _transpose(rng, q, target):
    weight = target.weight
    ways = []
    if _square(q):
        ways.append(lambda: weight.transpose(0, 1))
    if weight.dim() == 4 and weight.shape[-1] > 1:
        ways += [lambda: weight.transpose(2, 3), lambda: weight.flip(2, 3)]
    return rng.choice(ways)().clone()


def _permute(rng, q, target):
    dim = rng.choice([0, 1]) if target.weight.shape[1] > 8 else 0
    order = torch.randperm(target.weight.shape[dim])
    return target.weight.index_select(dim, order)


def _noise(rng, q, target):
    return target.weight + rng.uniform(0.1, 0.6) * target.weight.std() * torch.randn_like(target.weight)


def bias(kind: str) -> Callable[[random.Random, Subject], Mutant]:
    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        have = [
            p for p in layers(subject) if (b := subject.int8.get_submodule(p).bias()) is not None and b.abs().max() > 0
        ]
        path = pick(rng, have, "bias")
        model = copy.deepcopy(subject.rebuilt)
        target = model.get_submodule(path)
        with torch.no_grad():
            if kind == "bias_missing":
                target.bias = None
            elif kind == "bias_zeroed":
                target.bias.zero_()
            elif kind == "bias_not_copied":
                bound = target.weight[0].numel() ** -0.5
                target.bias.uniform_(-bound, bound)
            else:
                same = [p for p in have if p != path and model.get_submodule(p).bias.shape == target.bias.shape]
                target.bias.copy_(model.get_submodule(rng.choice(same)).bias if same else target.bias.flip(0) * 1.5)
        return Mutant(subject.int8, model, kind, (path,))

    return mutate


def affine(kind: str) -> Callable[[random.Random, Subject], Mutant]:
    """Zero points: the layer's integers are shifted in the int8 model first, as an affine observer gives them."""

    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        path = pick(rng, layers(subject))
        int8, model = copy.deepcopy(subject.int8), copy.deepcopy(subject.rebuilt)
        layer, target = int8.get_submodule(path), model.get_submodule(path)
        weight = layer.weight().dequantize()
        flat = weight.flatten(1)
        low, high = flat.amin(1).clamp(max=0), flat.amax(1).clamp(min=0)
        scale = ((high - low) / 255).clamp(min=1e-8)
        zero = (-128 - low / scale).round().clamp(-128, 127) + rng.choice([-20, 20])
        zero = torch.where(zero == 0, 7, zero).clamp(-128, 127).long()
        q = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        layer.set_weight_bias(q, layer.bias())
        ints, s, z = integers(layer.weight())
        wrapped = (ints - z + 128).remainder(256) - 128
        if kind == "zero_point_wrapped" and torch.equal(wrapped, ints - z):
            raise NotApplicable("no difference that wraps")
        with torch.no_grad():
            target.weight.copy_(ints * s if kind == "zero_point_ignored" else wrapped * s)
        return Mutant(int8, model, kind, (path,))

    return mutate


def swapped(both: bool) -> Callable[[random.Random, Subject], Mutant]:
    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        shapes = {path: subject.rebuilt.get_submodule(path).weight.shape for path in layers(subject)}
        pairs = [(a, b) for a in shapes for b in shapes if a < b and shapes[a] == shapes[b]]
        if not pairs:
            raise NotApplicable("no two layers of one shape")
        one, two = rng.choice(pairs)
        model = copy.deepcopy(subject.rebuilt)
        a, b = model.get_submodule(one), model.get_submodule(two)
        with torch.no_grad():
            first = a.weight.clone()
            a.weight.copy_(b.weight)
            if both:
                b.weight.copy_(first)
        return Mutant(
            subject.int8, model, "weights_swapped" if both else "weight_of_other_layer", (one, two) if both else (one,)
        )

    return mutate


def other_checkpoint(rng: random.Random, subject: Subject) -> Mutant:
    paths = tuple(layers(subject))
    if subject.other is not None and rng.random() < 0.5:
        return Mutant(subject.int8, copy.deepcopy(subject.other), "other_checkpoint", paths)
    model = copy.deepcopy(subject.rebuilt)
    with torch.no_grad():
        for path in paths:
            weight = model.get_submodule(path).weight
            weight += rng.uniform(0.1, 0.5) * weight.std() * torch.randn_like(weight)
    return Mutant(subject.int8, model, "other_checkpoint", paths)


_NAMES = ("ReLU", "LeakyReLU")


def activation(kind: str) -> Callable[[random.Random, Subject], Mutant]:
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
        raise NotApplicable("no batch norm was folded in")
    return rng.choice(slots)


def training_mode(rng: random.Random, subject: Subject) -> Mutant:
    model = copy.deepcopy(subject.rebuilt)
    drops = [p for p, m in model.named_modules() if isinstance(m, nn.Dropout)]
    if drops:
        path = rng.choice(drops)
        model.get_submodule(path).train()
        return Mutant(subject.int8, model, "training_mode", (path,))
    try:
        path, slot = _norm_slot(rng, model)
    except NotApplicable:
        raise NotApplicable("neither dropout nor batch norm") from None
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
        raise NotApplicable("the features are one pixel: no order to mistake")
    with torch.no_grad():
        weight.copy_(weight.view(len(weight), channels, -1).transpose(1, 2).reshape(weight.shape))
    return Mutant(subject.int8, model, "flatten_order", (linear,))


def not_finite(rng: random.Random, subject: Subject) -> Mutant:
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    target = model.get_submodule(path)
    value = target.bias if target.bias is not None and rng.random() < 0.3 else target.weight
    with torch.no_grad():
        places = torch.randperm(value.numel())[: rng.choice([1, 5, value.numel()])]
        value.view(-1)[places] = rng.choice([float("nan"), float("inf"), -float("inf")])
    return Mutant(subject.int8, model, "not_finite", (path,))


def no_partner(rng: random.Random, subject: Subject) -> Mutant:
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    model.set_submodule(path, nn.Identity())
    return Mutant(subject.int8, model, "no_partner", (path,))


def shape_mismatch(rng: random.Random, subject: Subject) -> Mutant:
    path, model = rng.choice(layers(subject)), copy.deepcopy(subject.rebuilt)
    weight = model.get_submodule(path).weight
    rows, columns = weight.shape[0] + rng.choice([-3, 1, 16]), weight.shape[1]
    kernel = weight.shape[2:]
    other = nn.Conv2d(columns, rows, kernel, padding=1) if kernel else nn.Linear(columns, rows)
    model.set_submodule(path, other)
    return Mutant(subject.int8, model, "shape_mismatch", (path,))


def activation_added(rng: random.Random, subject: Subject) -> Mutant:
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
        return self.factor * x + self.shift


def quant_stub_lost(rng: random.Random, subject: Subject) -> Mutant:
    stubs = {type(m).__name__: (p, m) for p, m in subject.int8.named_modules()}
    model = copy.deepcopy(subject.rebuilt)
    path = stubs[rng.choice(["Quantize", "DeQuantize"])][0]
    scale, zero_point = float(stubs["Quantize"][1].scale), int(stubs["Quantize"][1].zero_point)
    ways = [Affine(1 / scale, zero_point), Affine(1 / scale), Affine(scale), Affine(rng.uniform(1.5, 4), 0.3)]
    model.set_submodule(path, rng.choice(ways))
    return Mutant(subject.int8, model, "quant_stub_lost", (path,))


def clipping(rng: random.Random, subject: Subject) -> Mutant:
    """No fault: one int8 layer represents a part of its values only."""
    path, int8 = rng.choice(layers(subject)), copy.deepcopy(subject.int8)
    int8.get_submodule(path).scale /= rng.uniform(6, 12)
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
    return Mutant(int8, model, "saturation", (path,), subject.images)


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


def _fresh(rng, q, target):
    if rng.random() < 0.5 and target.bias is not None:
        bound = target.weight[0].numel() ** -0.5
        target.bias.uniform_(-bound, bound)
    return _initial(target)


MUTATIONS: dict[str, Callable[[random.Random, Subject], Mutant]] = {
    "weight_not_copied": with_weight(_fresh, "weight_not_copied"),
    "weight_partly_copied": with_weight(_partly, "weight_partly_copied"),
    "weight_of_other_layer": swapped(both=False),
    "weights_swapped": swapped(both=True),
    "weight_transposed": with_weight(_transpose, "weight_transposed", _can_transpose),
    "weight_altered": with_weight(_noise, "weight_altered"),
    "channels_permuted": with_weight(_permute, "channels_permuted"),
    "other_checkpoint": other_checkpoint,
    "scale_missing": with_weight(_formula(lambda rng, q, i, s, z: (i - z).float()), "scale_missing"),
    "scale_of_activation": with_weight(_formula(lambda rng, q, i, s, z: (i - z) * q.scale), "scale_of_activation"),
    "scale_of_one_channel": with_weight(_formula(_one_channel), "scale_of_one_channel"),
    "scale_mean": with_weight(_formula(lambda rng, q, i, s, z: (i - z) * s.mean()), "scale_mean"),
    "scale_wrong_axis": with_weight(_formula(_wrong_axis), "scale_wrong_axis", _square),
    "scale_divided": with_weight(_formula(lambda rng, q, i, s, z: (i - z) / s), "scale_divided"),
    "scale_wrong": with_weight(_formula(_wrong_scale), "scale_wrong"),
    "zero_point_ignored": affine("zero_point_ignored"),
    "zero_point_wrapped": affine("zero_point_wrapped"),
    "bias_missing": bias("bias_missing"),
    "bias_zeroed": bias("bias_zeroed"),
    "bias_not_copied": bias("bias_not_copied"),
    "bias_wrong": bias("bias_wrong"),
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


def mutate(kind: str, subject: Subject, seed: int) -> Mutant:
    """Put one fault in, at a place and with values drawn from ``seed``."""
    torch.manual_seed(seed)
    return MUTATIONS[kind](random.Random(seed), subject)


def mutate_twice(kinds: tuple[str, str], subject: Subject, seed: int) -> tuple[Mutant, Mutant]:
    """Put two faults in, at different layers; the second mutant holds both models."""
    for attempt in range(20):
        first = mutate(kinds[0], subject, seed * 100 + attempt)
        second = mutate(kinds[1], Subject(subject.name, first.int8, first.float_model), seed * 100 + attempt + 50)
        if not set(first.modules) & set(second.modules):
            return first, second
    raise NotApplicable("no two places")
