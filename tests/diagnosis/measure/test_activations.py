"""Clipping is judged by the range of each output's own dtype."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

import qdeq

RANGES = {torch.quint8: (0, 255), torch.qint8: (-128, 127)}


@pytest.fixture(autouse=True)
def onednn():
    """The engine whose Linear takes qint8 activations as well."""
    before = torch.backends.quantized.engine
    if "onednn" not in torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no onednn")
    torch.backends.quantized.engine = "onednn"
    yield
    torch.backends.quantized.engine = before


def layer(dtype: torch.dtype, zero_point: int) -> nn.Module:
    """Quantize to ``dtype``, a Linear whose outputs are -4 to 4 in steps of 0.1, DeQuantize."""
    random = torch.Generator().manual_seed(0)
    # Integers too small for sums of 16 bits to overflow, on any CPU.
    weight = torch.quantize_per_tensor(torch.randn(6, 8, generator=random), 0.05, 0, torch.qint8)
    linear = nnq.Linear(8, 6)
    linear.set_weight_bias(weight, torch.zeros(6))
    linear.scale, linear.zero_point = 0.1, zero_point
    return nn.Sequential(nnq.Quantize(0.02, zero_point, dtype), linear, nnq.DeQuantize()).eval()


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.quint8, 128), (torch.qint8, 0), (torch.qint8, 5)])
def test_what_an_output_represents_goes_by_its_dtype(dtype, zero_point):
    int8 = layer(dtype, zero_point)
    data = torch.rand(64, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    rebuilt = qdeq.dequantize_model(int8)
    fitting = qdeq.explain(int8, rebuilt, data)
    (row,) = fitting.layers
    low, high = RANGES[dtype]
    assert row.low_representable == pytest.approx(0.1 * (low - zero_point))
    assert row.high_representable == pytest.approx(0.1 * (high - zero_point))
    assert row.low < -3
    assert row.clipped == 0
    assert "clipping" not in {item.kind for item in fitting.findings}

    narrow = copy.deepcopy(int8)
    narrow[1].scale = 0.1 / 8
    clipped = qdeq.explain(narrow, rebuilt, data)
    steps = rebuilt(data) / narrow[1].scale + zero_point
    outside = float(((steps < low - 0.5) | (steps > high + 0.5)).double().mean())
    (row,) = clipped.layers
    assert row.clipped == pytest.approx(outside)
    assert outside > 0.1
    # The outputs part here: a range that is this much too narrow is a fault.
    assert "calibrated_narrow" in {item.kind for item in clipped.findings}
    assert not clipped.agrees
