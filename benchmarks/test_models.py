"""Whole models: dequantize_model against the correct loop written by hand."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import LIMITS, Case, assert_same_bits, measure
from benchmarks.models import hand_loop, quantized_vgg11, torchvision_model
from qdeq import dequantize_model


def compare(benchmark, name, model, goal, rounds):
    layers, rebuilt = hand_loop(model), dequantize_model(model)
    weights = 0
    for path, layer in layers.items():
        mine = rebuilt.get_submodule(path)
        assert_same_bits(mine.weight, layer.weight)
        if layer.bias is not None:
            assert torch.equal(mine.bias, layer.bias)
        weights += layer.weight.numel()
    del layers, rebuilt
    case = Case(
        name,
        lambda: dequantize_model(model),
        peers={"torch": lambda: hand_loop(model)},
        limits={"fresh memset": lambda: LIMITS.fresh_memset(4 * weights)},
        out_bytes=4 * weights,
        goal={"torch": goal},
    )
    measure(benchmark, case, rounds=rounds)


def test_vgg11(benchmark, quick):
    hidden = 256 if quick else 4096
    compare(benchmark, f"VGG11 224 x 224, hidden {hidden}", quantized_vgg11(hidden), 12, 3 if quick else 7)


# The squeeze-and-excitation blocks hold observers that no forward of theirs runs.
@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_large"])
def test_torchvision(benchmark, name, quick):
    compare(benchmark, name, torchvision_model(name), 3, 3 if quick else 9)
