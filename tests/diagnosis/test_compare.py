"""Which modules of two models are compared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qdeq


@pytest.fixture(scope="module")
def prepared():
    """Two convolutions, fused with what follows them and prepared for training, with observers."""
    model = nn.Sequential(
        torch.ao.quantization.QuantStub(),
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.ReLU()),
        torch.ao.quantization.DeQuantStub(),
    )
    model.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    torch.ao.quantization.fuse_modules_qat(model, [["1", "2", "3"], ["4", "5"]], inplace=True)
    torch.ao.quantization.prepare_qat(model, inplace=True)
    model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def test_a_fused_layer_counts_as_one_module(prepared):
    data = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert [row.module for row in qdeq.compare(prepared, copy.deepcopy(prepared), data).layers] == ["1", "4", "6"]


@pytest.mark.parametrize("activations", ["drop", "clamp", "fake_quant"])
def test_what_rounds_another_modules_output_is_not_compared(prepared, activations):
    int8 = torch.ao.quantization.convert(copy.deepcopy(prepared))
    rebuilt = qdeq.dequantize_model(int8, activations=activations)
    data = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    names = [row.module for row in qdeq.compare(rebuilt, copy.deepcopy(rebuilt), data).layers]
    assert set(names) >= {"1", "4"}
    assert not [name for name in names if name.endswith("activation_post_process")]
