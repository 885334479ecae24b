"""torchvision's models converted by FX mode: weights bit for bit, keys as before, and what one does with a model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qdeq import dequantize_model, drop_activations
from tests.helpers.graphs import converted, reloaded
from tools.graph_agreement import node_agreement
from tools.graph_table import differing_weights
from tools.graphs import quantized_graph
from tools.models import torchvision_models

# torch says it of the code that it generates itself.
SCRIPTING = pytest.mark.filterwarnings("ignore:The TorchScript type system")


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v3_large"])
def graph(request):
    return request.param, quantized_graph(request.param, batch=1)


def test_weights_are_bit_equal_under_the_names_of_the_float_class(graph):
    name, quantized = graph
    rebuilt, report = dequantize_model(quantized.int8, return_report=True)
    assert not differing_weights(quantized.int8, rebuilt)
    with torch.device("meta"):
        names = set(getattr(torchvision_models(), name)(num_classes=10).state_dict())
    own = {name for name in rebuilt.state_dict() if name not in names}
    assert all(key.endswith(".bias") for key in own), "folding a batch norm adds a bias, nothing else"
    assert [entry.target for entry in report.entries if entry.target not in rebuilt.state_dict()] == []
    assert not report.uncovered
    assert not any(module.training for module in rebuilt.modules())


def test_every_node_rounds_as_int8_does(graph):
    _, quantized = graph
    imitation, report = dequantize_model(quantized.int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    found = node_agreement(quantized.int8, imitation, quantized.images)
    assert len(found) > 30
    assert {name: node for name, node in found.items() if node.share < 0.999 or node.max_steps > 1.01} == {}
    alone = dequantize_model(quantized.int8)(quantized.images)
    assert torch.equal(drop_activations(imitation)(quantized.images), alone)


@SCRIPTING
def test_the_result_copies_saves_scripts_exports_and_trains(graph):
    _, quantized = graph
    images, int8 = quantized.images, quantized.int8
    packed = [module for module in int8.modules() if callable(getattr(module, "weight", None))]
    before, outcome = [module.weight().int_repr() for module in packed], int8(images)
    model = dequantize_model(int8)
    expected = model(images)
    assert torch.equal(copy.deepcopy(model)(images), expected)
    assert torch.equal(reloaded(model)(images), expected)
    assert torch.equal(torch.jit.script(model)(images), expected)
    assert "quantiz" not in model.code
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    expected.square().mean().backward()
    assert all(parameter.grad is not None and parameter.is_contiguous() for parameter in model.parameters())
    optimizer.step()
    assert torch.equal(int8(images), outcome), "the int8 model shares memory with the result"
    assert all(torch.equal(module.weight().int_repr(), was) for module, was in zip(packed, before, strict=True))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return torch.sigmoid(self.head(F.avg_pool2d(x, 2).mean([2, 3]) + 0.3))


@SCRIPTING
@pytest.mark.parametrize("activations", ["drop", "clamp", "fake_quant"])
def test_what_one_does_with_a_model(activations):
    torch.manual_seed(4)
    x = torch.randn(5, 3, 10, 10)
    int8 = converted(Small().eval(), x)
    model = dequantize_model(int8, activations=activations)
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(reloaded(model)(x), expected)
    assert torch.equal(torch.jit.script(model)(x), expected)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)
    expected.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    plain, alone = drop_activations(model), dequantize_model(int8)
    assert list(plain.state_dict()) == list(alone.state_dict())
    assert torch.equal(plain(x), alone(x)), "the number in the code is back"
    assert plain.code == alone.code
