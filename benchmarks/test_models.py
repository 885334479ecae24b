"""Whole models: dequantize_model against the correct loop written by hand.

``torch`` is that loop, which ends with a float model that computes the same; ``layers only`` stops before it has one.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks.harness import LIMITS, Case, assert_same_bits, measure
from benchmarks.models import (
    float_torchvision,
    float_vgg11,
    hand_layers,
    hand_model,
    quantized_vgg11,
    torchvision_model,
)
from qdeq import dequantize_model


def check(mine, by_hand, layers, x):
    """The same parameters of the same names, and the same outputs, bit for bit."""
    ours, theirs = dict(mine.named_parameters()), dict(by_hand.named_parameters())
    assert set(ours) == set(theirs)
    for name, parameter in theirs.items():
        assert_same_bits(ours[name], parameter)
    bare = {f"{path}.{name}": value for path, layer in layers.items() for name, value in layer.named_parameters()}
    assert set(bare) == set(ours)
    for name, parameter in bare.items():
        assert_same_bits(ours[name], parameter)
    with torch.no_grad():
        assert_same_bits(mine(x), by_hand(x))
    return sum(parameter.numel() for parameter in ours.values())


def compare(benchmark, name, model, float_class, goal, rounds, side):
    x = torch.randn(2, 3, side, side)
    weights = check(dequantize_model(model), hand_model(model, float_class), hand_layers(model), x)
    # A virtual machine gives free memory back to its host within seconds; touching it again then costs ten times the
    # conversion. So each candidate finds as much memory as the result needs that was in use just before.
    case = Case(
        name,
        lambda: dequantize_model(model),
        peers={"torch": lambda: hand_model(model, float_class), "layers only": lambda: hand_layers(model)},
        limits={"fresh memset": lambda: LIMITS.fresh_memset(4 * weights)},
        out_bytes=4 * weights,
        goal={"torch": goal},
        before=lambda: LIMITS.fresh_memset(4 * weights),
    )
    measure(benchmark, case, rounds=rounds)


def test_vgg11(benchmark, quick):
    hidden = 256 if quick else 4096
    name = f"VGG11 224 x 224, hidden {hidden}"
    compare(benchmark, name, quantized_vgg11(hidden), partial(float_vgg11, hidden), 12, 3 if quick else 7, 224)


# The squeeze-and-excitation blocks hold observers that no forward of theirs runs.
@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_large"])
def test_torchvision(benchmark, name, quick):
    model, float_class = torchvision_model(name), partial(float_torchvision, name)
    compare(benchmark, name, model, float_class, 3, 3 if quick else 11, 64)
