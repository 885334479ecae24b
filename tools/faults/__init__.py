"""Faults put into a correct rebuild on purpose: each returns what :func:`qdeq.explain` should name first."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from tools.faults import structure, weights
from tools.faults.subject import Mutant, NoPlaceError, Subject

__all__ = ["MUTATIONS", "Mutant", "NoPlaceError", "Subject", "mutate", "mutate_twice"]

MUTATIONS: dict[str, Callable[[random.Random, Subject], Mutant]] = {**weights.MUTATIONS, **structure.MUTATIONS}


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
    raise NoPlaceError("no two places")
