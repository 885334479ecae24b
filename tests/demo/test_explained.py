"""The post's own loop, both ways, on a network of its form that has learned the digits: what explain makes of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qdeq.demo.data import load_digits
from qdeq.demo.naive import copy_in_place, copy_through_state_dict
from qdeq.diagnosis.explain import explain
from tools.models import engine


class Net(nn.Module):
    """VGG11's form, small: convolutions without batch norm, then Linear-ReLU-Linear, between stubs."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32 * 16, 64), nn.ReLU(), nn.Linear(64, 10))
        self.quant, self.dequant = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dequant(self.classifier(self.features(self.quant(x)).flatten(1)))


def _train(model, images, order, *, epochs, learning_rate):
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for inputs, labels in images.batches(32, order):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()


@pytest.fixture(scope="module")
def trained():
    """(int8 model, test images): trained in float, then quantization-aware."""
    train, test = load_digits()
    torch.manual_seed(0)
    model = Net().train()
    order = torch.Generator().manual_seed(0)
    with engine("fbgemm"):
        _train(model, train, order, epochs=8, learning_rate=2e-3)
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        prepared = torch.ao.quantization.prepare_qat(model)
        _train(prepared, train, order, epochs=1, learning_rate=2e-4)
        return torch.ao.quantization.convert(prepared.eval()), test


@pytest.mark.slow
@pytest.mark.parametrize("copy_weights", [copy_through_state_dict, copy_in_place])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_lost_accuracy_goes_to_the_linear_weights(trained, copy_weights, seed):
    int8, test = trained
    torch.manual_seed(seed)
    fresh = Net().eval()
    copy_weights(int8, fresh)
    kept = copy.deepcopy(fresh.state_dict())
    explanation = explain(int8, fresh, test.batches(64))
    outcome = explanation.outcome
    assert outcome.accuracy_a > 0.95
    assert outcome.accuracy_b < 0.4
    named = [item.module for item in explanation.findings if item.kind == "weight_not_copied"]
    assert sorted(named) == ["classifier.0", "classifier.2"]
    assert explanation.verdict.startswith("classifier.0 and classifier.2: weights never copied (")
    assert explanation.regained["weight_not_copied"] >= 0.95
    assert all(torch.equal(value, kept[name]) for name, value in fresh.state_dict().items())
