"""Diagnosis: from the weights alone against a loop that dequantizes and compares, with data against one forward."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Case, measure
from benchmarks.models import hand_layers, quantized_vgg11
from qdeq import dequantize_model, explain

# With data a diagnosis may take this many forwards of both models.
MOST_FORWARDS = 4


def models(quick, fault):
    torch.manual_seed(0)
    int8 = quantized_vgg11(256 if quick else 4096)
    rebuilt = dequantize_model(int8)
    linear = rebuilt.get_submodule("3.0")
    with torch.no_grad():
        if fault == "one layer never copied":
            torch.nn.init.kaiming_uniform_(linear.weight, a=5**0.5)
            linear.bias.zero_()
        elif fault == "every layer altered":
            for parameter in rebuilt.parameters():
                parameter += 0.3 * parameter.std() * torch.randn_like(parameter)
    return int8, rebuilt


@pytest.mark.parametrize("fault", ["right", "one layer never copied", "every layer altered"])
def test_weights_only(benchmark, quick, fault):
    int8, rebuilt = models(quick, fault)

    def by_hand():
        layers = hand_layers(int8)
        return all(torch.equal(layer.weight, rebuilt.get_submodule(path).weight) for path, layer in layers.items())

    assert explain(int8, rebuilt).agrees is by_hand() is (fault == "right")
    name = f"explain, weights only, VGG11 {'9.3 M' if quick else '112 M'}: {fault}"
    weights = sum(parameter.numel() for parameter in rebuilt.parameters())
    case = Case(name, lambda: explain(int8, rebuilt), peers={"torch": by_hand}, out_bytes=4 * weights)
    measure(benchmark, case, rounds=3 if quick else 5)


@pytest.mark.parametrize("fault", ["right", "one layer never copied", "every layer altered"])
def test_with_data(benchmark, quick, fault):
    int8, rebuilt = models(quick, fault)
    images = torch.randn(4 if quick else 32, 3, 224, 224)
    size = 8

    def both():
        with torch.no_grad():
            for start in range(0, len(images), size):
                int8(images[start : start + size])
                rebuilt(images[start : start + size])

    # Random integers and full 8-bit activations: this int8 model saturates whatever the float model holds.
    wrong = {item.kind for item in explain(int8, rebuilt, images[:2]).findings if item.is_fault} - {"saturation"}
    assert (not wrong) is (fault == "right"), wrong
    name = f"explain, {len(images)} images of 224 x 224, VGG11: {fault} (torch: one forward of both)"
    goal = {} if quick else {"torch": 1 / MOST_FORWARDS}
    case = Case(name, lambda: explain(int8, rebuilt, images), peers={"torch": both}, goal=goal)
    measure(benchmark, case, rounds=1 if quick else 2)
