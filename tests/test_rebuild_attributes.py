"""What models keep in plain attributes, beside their modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeq import dequantize_model


@pytest.mark.parametrize("device", [None, "cpu"])
def test_an_optimizer_that_the_model_keeps_is_named_where_it_is_of_no_use(device):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    net.optimizer = torch.optim.Adam(net.parameters())
    int8 = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    _, report = dequantize_model(int8, return_report=True, device=device)
    assert "optimizer: the optimizer holds 2 of 4 tensors that are no parameters of this model" in str(report)
    net.optimizer = torch.optim.Adam(net[1].parameters())
    _, report = dequantize_model(torch.ao.quantization.quantize_dynamic(net, {nn.Linear}), return_report=True)
    assert "optimizer" not in str(report)
