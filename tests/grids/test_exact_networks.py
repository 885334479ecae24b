"""``activations="exact"``: networks that people have, as modules and as graphs: every output is int8's, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qdeq
from qdeq.demo.data import load_digits
from qdeq.demo.model import VGG11
from qdeq.grids.exact_sums import IntegerSums
from tests.helpers.models import assert_same_bits, engine, tq
from tests.helpers.saturation import assert_same_on_every_cpu
from tests.sources.eager.classes.helpers import ENGINES
from tools.models import converted_model, example

pytestmark = pytest.mark.skipif("fbgemm" not in ENGINES, reason="this torch has no fbgemm")
NETWORKS = ["mobilenet_v2", "mobilenet_v3_large", "shufflenet_v2_x0_5", "googlenet"]


def sums_in(model: nn.Module) -> int:
    return sum(isinstance(module, IntegerSums) for module in model.modules())


def calibrated_vgg(bn: bool, backend: str, images: Tensor) -> nn.Module:
    """The demo's network with random weights, fused; on the images that it is calibrated on no value exceeds 127."""
    torch.manual_seed(0)
    model = VGG11(512, 64, batch_norm=bn)
    with torch.no_grad(), engine(backend):
        if bn:
            model.train()(images[:32])  # gives the batch norms statistics
        groups: list[list[str]] = []
        for name, layer in model.eval().features.named_children():
            groups += [[]] if isinstance(layer, nn.Conv2d) else []
            groups[-1] += [] if isinstance(layer, nn.MaxPool2d) else [f"features.{name}"]
        tq.fuse_modules(model, [*groups, ["classifier.0", "classifier.1"]], inplace=True)
        observer = tq.MinMaxObserver.with_args(reduce_range=True)
        model.qconfig = tq.QConfig(activation=observer, weight=tq.default_per_channel_weight_observer)
        tq.prepare(model, inplace=True)(1.5 * images)  # room for what int8 adds to the largest
        return tq.convert(model, inplace=True)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [name for name in ("fbgemm", "x86") if name in ENGINES])
@pytest.mark.parametrize("bn", [False, True])
def test_the_digits_network_is_exact_on_all_test_images(bn, backend):
    test = load_digits()[1]
    images = test.batch(torch.arange(len(test)))[0]
    int8 = calibrated_vgg(bn, backend, images)
    rebuilt, report = qdeq.dequantize_model(int8, activations="exact", return_report=True)
    assert_same_on_every_cpu(int8, images)
    if report.uncovered:
        assert backend == "x86"
        assert "onednn" in report.uncovered[0].reason
        return
    assert sums_in(rebuilt) == 10
    with torch.no_grad():
        expected = int8(images)
        assert_same_bits(rebuilt(images), expected)
    assert len(expected.unique()) > 20


def assert_network_is_exact(int8: nn.Module, name: str) -> None:
    rebuilt, report = qdeq.dequantize_model(int8, activations="exact", return_report=True)
    halfway = "halfway between two steps", "step beside"
    assert all(any(words in item.reason for words in halfway) for item in report.uncovered), report.uncovered
    x = example(name).clamp(-2.5, 2.5)
    assert_same_on_every_cpu(int8, x)
    with torch.no_grad():
        assert_same_bits(rebuilt(x), int8(x))


def test_resnet18_is_exact():
    """Its average of 2 x 2 values is named; on this input none lies halfway, or the layout decides as int8's does."""
    assert_network_is_exact(converted_model("resnet18"), "resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_exact_but_for_what_is_named(name):
    assert_network_is_exact(converted_model(name), name)


class Residual(nn.Module):
    """A block of each kind: a sum, a concatenation, activations, a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.fc, self.pool = nn.Linear(16 * 16, 10), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x) + x
        z = torch.sigmoid(self.pool(torch.cat([y, nn.functional.hardtanh(y)], 1)))
        return self.fc(z.flatten(1))


def converted_graph(model: nn.Module, x: Tensor) -> nn.Module:
    with engine("fbgemm"), torch.no_grad():
        prepared = prepare_fx(model.eval(), tq.get_default_qconfig_mapping("fbgemm"), (x,))
        prepared(x)
        return convert_fx(prepared)


def test_a_graph_is_exact():
    torch.manual_seed(49)
    x = torch.randn(16, 3, 8, 8).clamp(-2, 2)
    int8 = converted_graph(Residual(), x)
    rebuilt, report = qdeq.dequantize_model(int8, activations="exact", return_report=True)
    assert all("pairs of values" in item.reason for item in report.uncovered)
    assert sums_in(rebuilt) == 3
    assert_same_on_every_cpu(int8, x)
    with torch.no_grad():
        assert_same_bits(rebuilt(x), int8(x))
    drop, dropped = qdeq.dequantize_model(int8), qdeq.drop_activations(rebuilt)
    assert list(dropped.state_dict()) == list(drop.state_dict())
    assert_same_bits(dropped(x), drop(x))


def test_a_graph_names_a_layer_that_runs_on_two_grids():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    x = torch.randn(8, 4)
    _, report = qdeq.dequantize_model(converted_graph(Twice(), x), activations="exact", return_report=True)
    assert "different scales" in report.uncovered[0].reason
