"""What is named as wrong is what is put right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import qdeq


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("part", ["weight", "bias"])
def test_values_that_are_not_finite_are_put_right_where_they_are(part, value):
    torch.manual_seed(0)
    model = nn.Sequential(torch.ao.quantization.QuantStub(), nn.Linear(16, 4), torch.ao.quantization.DeQuantStub())
    model.eval().qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(model, inplace=True)
    data = torch.randn(32, 16)
    model(data)
    int8 = torch.ao.quantization.convert(model)
    wrong = copy.deepcopy(qdeq.dequantize_model(int8))
    with torch.no_grad():
        wrong.get_submodule("1").get_parameter(part).view(-1)[0] = value
    first = qdeq.explain(int8, wrong, data).findings[0]
    assert (first.kind, first.module) == ("not_finite", "1")
    assert f"get_submodule('1').{part}" in first.remedy
    if value == float("inf"):  # against NaN nothing can be measured
        assert first.repair == 1.0
    exec(first.remedy, {"float_model": wrong, "int8_model": int8, "qdeq": qdeq, "torch": torch})
    assert qdeq.explain(int8, wrong, data).agrees
