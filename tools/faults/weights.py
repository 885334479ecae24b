"""Faults in weights and biases."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import torch
from torch import nn

from tools.faults.subject import Mutant, NoPlaceError, Subject, integers, layers, pick


def with_weight(
    change: Callable[[random.Random, nn.Module, nn.Module], torch.Tensor],
    kind: str,
    where: Callable[..., bool] | None = None,
) -> Callable[[random.Random, Subject], Mutant]:
    """Replace the weight of a layer for which ``where`` holds by what ``change`` makes of it."""

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
    """A bias lost, zeroed, fresh or of another layer."""

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
            raise NoPlaceError("no difference that wraps")
        with torch.no_grad():
            target.weight.copy_(ints * s if kind == "zero_point_ignored" else wrapped * s)
        return Mutant(int8, model, kind, (path,))

    return mutate


def swapped(both: bool) -> Callable[[random.Random, Subject], Mutant]:
    """The weight of another layer of the same shape, or both exchanged."""

    def mutate(rng: random.Random, subject: Subject) -> Mutant:
        shapes = {path: subject.rebuilt.get_submodule(path).weight.shape for path in layers(subject)}
        pairs = [(a, b) for a in shapes for b in shapes if a < b and shapes[a] == shapes[b]]
        if not pairs:
            raise NoPlaceError("no two layers of one shape")
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
    """All weights of another training run, or all of them altered."""
    paths = tuple(layers(subject))
    if subject.other is not None and rng.random() < 0.5:
        return Mutant(subject.int8, copy.deepcopy(subject.other), "other_checkpoint", paths)
    model = copy.deepcopy(subject.rebuilt)
    with torch.no_grad():
        for path in paths:
            weight = model.get_submodule(path).weight
            weight += rng.uniform(0.1, 0.5) * weight.std() * torch.randn_like(weight)
    return Mutant(subject.int8, model, "other_checkpoint", paths)


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
}
