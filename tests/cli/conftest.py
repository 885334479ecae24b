"""A checkpoint, and a way to run the command line on it."""

from __future__ import annotations

import signal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qdeq.cli import main
from tests.helpers.models import quantize


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A state dict of a static quantized model, as torch saves it."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 5)).eval()
    quantize(model, torch.rand(2, 3, 4, 4))
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.save(model.state_dict(), folder / "int8.pth")
    save_file(
        {
            "0.weight": model[0].weight().dequantize().contiguous(),
            "0.bias": model[0].bias().detach(),
            "2.weight": model[2].weight().dequantize(),
            "2.bias": model[2].bias().detach(),
        },
        folder / "float.safetensors",
    )
    return folder / "int8.pth"


@pytest.fixture
def run(capsys):
    """Run a command in this process: (status, stdout, stderr)."""

    def call(*arguments):
        old = signal.getsignal(signal.SIGTERM)
        try:
            status = main([str(argument) for argument in arguments])
        finally:
            signal.signal(signal.SIGTERM, old)
        return (status, *capsys.readouterr())

    return call
