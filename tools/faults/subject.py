"""What a fault is put into, and what comes of it."""

from __future__ import annotations

import random
from dataclasses import dataclass

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
    engine: str = "fbgemm"  # of torch, that the int8 model was made for


class NoPlaceError(Exception):
    """This subject has no place for the fault; says why."""


def layers(subject: Subject) -> list[str]:
    """The paths of the layers with a packed weight, in order."""
    return [path for path, module in subject.int8.named_modules() if callable(getattr(module, "weight", None))]


def integers(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(integers in int32, scales, zero points) of a weight; the last two broadcast along its rows."""
    view = (-1, *[1] * (q.dim() - 1))
    if q.qscheme() == torch.per_tensor_affine:
        count = q.shape[0]
        scale, zero = torch.full((count,), q.q_scale()), torch.full((count,), q.q_zero_point())
    else:
        scale, zero = q.q_per_channel_scales(), q.q_per_channel_zero_points()
    return q.int_repr().int(), scale.clone().view(view), zero.clone().view(view)


def pick(rng: random.Random, items: list[str], what: str = "such layer") -> str:
    """Draw one; :class:`NoPlaceError` where there is none."""
    if not items:
        raise NoPlaceError(f"no {what}")
    return rng.choice(items)
