"""The account of a conversion, as an object, as text and as JSON."""

from __future__ import annotations

import json

import pytest

from qdeq import dequantize_model
from tests.helpers.models import small_vgg


class TestReport:
    def test_every_parameter_has_its_source(self):
        int8 = small_vgg()
        rebuilt, report = dequantize_model(int8, return_report=True)
        assert {entry.target for entry in report.entries} == set(dict(rebuilt.named_parameters()))
        entry = next(entry for entry in report.entries if entry.target == "classifier.3.weight")
        weight = int8.classifier[3].weight()
        assert entry.source == "classifier.3.weight"
        assert entry.shape == (10, 32)
        assert (entry.dtype, entry.qscheme) == ("qint8", "per_channel_affine")
        assert entry.scale_min == float(weight.q_per_channel_scales().min())
        assert entry.scale_max == float(weight.q_per_channel_scales().max())
        integers = weight.int_repr()
        ends = ((integers == -128) | (integers == 127)).double().mean()
        assert entry.saturated_share == pytest.approx(float(ends))
        assert entry.saturated_share > 0

    def test_text_fits_100_columns_and_names_everything(self):
        text = str(dequantize_model(small_vgg(bn=True), return_report=True)[1])
        assert max(map(len, text.splitlines())) <= 100
        for name in ("features.0.weight", "classifier.3.bias", "qint8", "ReLU"):
            assert name in text

    def test_json_is_strict_and_complete(self):
        report = dequantize_model(small_vgg(), return_report=True)[1]
        data = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(name))
        assert data == json.loads(json.dumps(report.to_dict()))
        assert len(data["entries"]) == 8
        assert data["activation_qparams"]["classifier.3"]

    def test_activation_scales_are_named_as_dropped(self):
        int8 = small_vgg()
        report = dequantize_model(int8, return_report=True)[1]
        dropped = {item.source: item.value for item in report.dropped}
        assert dropped["classifier.3.scale"] == int8.classifier[3].scale
        assert dropped["quant.zero_point"] == int(int8.quant.zero_point)
