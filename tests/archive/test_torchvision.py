"""torchvision's quantizable models, saved and read back, and loaded into the float class with its batch norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qdeq
from tests.archive.conftest import live_weights
from tests.helpers.torchvision_models import converted_model, example, float_model

NAMES = (
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "resnet18",
    "resnet50",
    "resnext101_32x8d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x2_0",
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", NAMES)
def test_saved_read_and_loaded(name: str, tmp_path: Path) -> None:
    model = converted_model(name)
    expected = live_weights(model)
    path = tmp_path / f"{name}.pth"
    torch.save(model.state_dict(), path)
    with qdeq.open(path) as archive:
        assert set(archive) == set(expected)
        for key, value in archive.items():
            tensor = value.dequantize() if isinstance(value, qdeq.QuantizedWeight) else value
            assert torch.equal(tensor, expected[key]), key
        target = float_model(name)
        with torch.no_grad():
            for parameter in target.parameters():
                parameter.fill_(float("nan"))
        qdeq.dequantize_state_dict(archive, into=target)
    norms = [m for m in target.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    x = example(name)
    rebuilt = qdeq.dequantize_model(model)
    with torch.no_grad():
        found, wanted = target(x), rebuilt(x)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
