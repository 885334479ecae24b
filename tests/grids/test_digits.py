"""The demo's network, trained on the digits for a moment: how close the three modes are to int8, end to end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import qdeq
from qdeq.demo.data import load_digits
from qdeq.demo.model import VGG11, prepare, to_int8
from qdeq.demo.train import logits_of, train
from qdeq.grids import Clamp
from tests.helpers.models import engine

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Digits:
    int8: nn.Module
    images: Tensor
    labels: Tensor
    logits: Tensor


@pytest.fixture(scope="module")
def digits() -> Iterator[Digits]:
    """VGG11 with batch norm after one pass over the images, and a few steps of quantization-aware training."""
    training, test = load_digits()
    few = replace(training, pixels=training.pixels[:256], labels=training.labels[:256])
    console = Console(file=io.StringIO())
    options = {"epochs": 1, "batch_size": 64, "seed": 0, "console": console, "title": ""}
    with engine("fbgemm"):
        torch.manual_seed(0)
        model = VGG11(512, 512, batch_norm=True)
        train(model, training, learning_rate=1e-3, one_cycle=True, **options)
        prepared = prepare(model)
        train(prepared, few, learning_rate=1e-4, one_cycle=False, **options)
        int8 = to_int8(prepared)
        images, labels = test.batch(torch.arange(len(test)))
        yield Digits(int8, images, labels, logits_of(int8, test))


def rebuilt_logits(digits: Digits, activations: str, dtype: torch.dtype = torch.float32) -> Tensor:
    rebuilt = qdeq.dequantize_model(digits.int8, activations=activations).to(dtype)
    with torch.no_grad():
        return rebuilt(digits.images.to(dtype)).float()


def test_it_is_trained(digits):
    assert (digits.logits.argmax(1) == digits.labels).float().mean() > 0.5


def test_fake_quant_gives_the_int8_logits(digits):
    """In float64 all but a few; float32 sums of thousands of products flip a rounding here and there on the way."""
    step = float(digits.int8.classifier[2].scale)
    for dtype, least in ((torch.float64, 0.995), (torch.float32, 0.97)):
        logits = rebuilt_logits(digits, "fake_quant", dtype)
        assert (logits == digits.logits).float().mean() >= least, dtype
        assert (logits - digits.logits).abs().max() <= 3 * step, dtype
        assert torch.equal(logits.argmax(1), digits.logits.argmax(1)) or dtype == torch.float32


def test_clamp_is_nearer_than_drop_where_anything_is_clamped(digits):
    """The int8 model's range is twice what it was calibrated for, so often nothing is."""
    clamped = 0

    def count(module, args, output):
        nonlocal clamped
        clamped += int((args[0] != output).sum())

    model = qdeq.dequantize_model(digits.int8, activations="clamp")
    for module in model.modules():
        if isinstance(module, Clamp):
            module.register_forward_hook(count)
    with torch.no_grad():
        clamp = (model(digits.images) - digits.logits).abs().mean()
    drop = (rebuilt_logits(digits, "drop") - digits.logits).abs().mean()
    assert clamp < drop if clamped else clamp == drop
