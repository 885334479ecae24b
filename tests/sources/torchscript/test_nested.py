"""Scripts inside eager models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.sources.torchscript import models
from tools.models import tq


class Pipeline(nn.Module):
    """A network, whatever it is, between float and dynamic layers."""

    def __init__(self, network: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.before, self.network = nn.Conv2d(3, 3, 1), network
        self.head = head if head is not None else nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.network(self.before(x)))


@pytest.mark.parametrize("activations", ["drop", "fake_quant"])
def test_a_script_becomes_a_graph_in_its_place(activations):
    torch.manual_seed(1)
    network, x = models.static(), models.images()
    eager = tq.quantize_dynamic(Pipeline(network).eval(), {nn.Linear})
    scripted = Pipeline(torch.jit.script(network), eager.head).eval()
    scripted.before = eager.before
    expected = qdeq.dequantize_model(eager, activations=activations)
    rebuilt, report = qdeq.dequantize_model(scripted, activations=activations, return_report=True)
    assert type(rebuilt) is Pipeline
    assert torch.allclose(rebuilt(x), expected(x), rtol=0, atol=1e-6)
    names = {name for name, _ in expected.named_parameters()}
    assert {name for name, _ in rebuilt.named_parameters()} == names
    assert {entry.target for entry in report.entries} <= names
    for name, parameter in expected.named_parameters():
        assert torch.equal(rebuilt.get_parameter(name), parameter), name


def test_a_float_script_is_copied():
    network, x = models.static(), models.images()
    model = Pipeline(network, torch.jit.script(nn.Linear(5, 2)))
    rebuilt = qdeq.dequantize_model(model.eval())
    assert isinstance(rebuilt.head, torch.jit.ScriptModule)
    assert rebuilt(x).shape == (2, 2)


def test_a_script_that_cannot_be_followed_is_named_by_its_path():
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x.mean((2, 3)))
            if bool(x.sum() > 0):
                x = x * 2
            return x

    network = torch.jit.script(tq.quantize_dynamic(Deciding(), {nn.Linear}))
    with pytest.raises(qdeq.QdeqValueError, match=r"network: code/.*line \d+: .*which the input decides|bool\(\)"):
        qdeq.dequantize_model(Pipeline(network))


def test_explain_reads_a_script_by_its_layers():
    network = models.static()
    script, right = torch.jit.script(network), qdeq.dequantize_model(network)
    wrong = qdeq.dequantize_model(network)
    with torch.no_grad():
        wrong.fc.weight[0] *= 3
    for model, faults in ((right, []), (wrong, [("fc", "scale_wrong")])):
        found = qdeq.explain(script, model).findings
        assert [(finding.module, finding.kind) for finding in found if finding.kind != "rounding"] == faults
