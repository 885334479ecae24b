"""Scripts of models that torch's FX mode converted, and of models that people have."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qdeq
from tests.helpers.graphs import converted
from tests.helpers.saturation import spread
from tests.sources.torchscript.scripts import FORMS, as_script, program_of, run_int8, same
from tools.models import converted_model, example


class Functions(nn.Module):
    """Weights of functions, sums, floats in the middle, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 9)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.fc = nn.Linear(8, 4)

    def forward(self, x):  # torch scripts no graph whose annotations are text
        x = F.relu(self.conv(x))
        x = x + F.conv2d(x, self.weight, None, (1, 1), (1, 1), (1, 1), 1)
        x = F.silu(x) * self.scale
        return self.fc(F.hardtanh(x.mean((2, 3)), 0.0, 6.0))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    model, x = spread(Functions().eval()), torch.randn(2, 3, 6, 6)
    with torch.no_grad():
        model.weight[:, 1::2] = 0
    return converted(model, x), x


@pytest.mark.parametrize("form", FORMS)
def test_an_fx_model_is_that_of_its_own_rebuild(graph, form):
    model, x = graph
    script = as_script(model, form, x)
    assert same(run_int8(program_of(script), x), script(x))
    rebuilt, expected = qdeq.dequantize_model(script), qdeq.dequantize_model(model)
    if form.endswith("frozen"):  # freezing rounds what is quantized at every call
        rounded = torch.quantize_per_tensor(expected.scale.data, *_grid_of_scale(model), torch.quint8)
        expected.scale.data = rounded.dequantize()
    assert torch.allclose(rebuilt(x), expected(x), rtol=0, atol=1e-5)
    imitating, report = qdeq.dequantize_model(script, activations="fake_quant", return_report=True)
    assert report.uncovered == []
    assert torch.allclose(imitating(x), script(x), rtol=0, atol=1e-6)


def _grid_of_scale(model) -> tuple[float, int]:
    node = next(node for node in model.graph.nodes if node.op == "get_attr" and node.target == "scale")
    quantize = next(iter(node.users))
    scale, zero_point = (getattr(model, part.target).item() for part in quantize.args[1:3])
    return scale, zero_point


@pytest.mark.parametrize("form", ["scripted", *(pytest.param(form, marks=pytest.mark.slow) for form in FORMS[1:])])
def test_resnet18(form):
    model, x = converted_model("resnet18"), example("resnet18")
    rebuilt = qdeq.dequantize_model(as_script(model, form, x))
    expected = qdeq.dequantize_model(model)
    assert same(rebuilt(x), expected(x))
    if not form.endswith("frozen"):
        assert {n for n, _ in rebuilt.named_parameters()} == {n for n, _ in expected.named_parameters()}
