"""What ``dequantize_model`` refuses, and in which words."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeq import QdeqError, dequantize_model
from tests.helpers.models import SmallVGG, assert_same_bits, frozen_state, small_vgg, tq


class Unknown(torch.ao.nn.quantized.Linear):
    pass


class TestRefusals:
    def test_not_a_module(self):
        with pytest.raises(QdeqError, match="model: expected a torch.nn.Module, got .*dict") as info:
            dequantize_model({"a": 1})
        assert isinstance(info.value, TypeError)

    def test_a_float_model_with_stubs(self):
        model = nn.Sequential(tq.QuantStub(), nn.Linear(2, 2), tq.DeQuantStub())
        with pytest.raises(QdeqError, match="expected at least one quantized module, got none"):
            dequantize_model(model)
        assert isinstance(dequantize_model(model, strict=False)[0], nn.Identity)

    @pytest.mark.parametrize("device", ["nonsense", "cuda:4096", 3.5])
    def test_a_device_that_is_not_there(self, device):
        with pytest.raises(QdeqError, match="device: expected a device of this torch"):
            dequantize_model(small_vgg(), device=device)

    def test_a_float_model(self):
        model = nn.Sequential(nn.Linear(2, 2))
        with pytest.raises(QdeqError, match="float model already.*strict=False"):
            dequantize_model(model)
        copied = dequantize_model(model, strict=False)
        assert copied is not model
        assert torch.equal(copied[0].weight, model[0].weight)
        assert copied[0].weight.data_ptr() != model[0].weight.data_ptr()

    def test_meta(self):
        int8 = small_vgg()
        int8.head = nn.Linear(2, 2, device="meta")
        with pytest.raises(QdeqError, match=r"head\.weight: .*meta device"):
            dequantize_model(int8)

    def test_half_converted(self):
        model = SmallVGG().train()
        model.qconfig = tq.get_default_qat_qconfig("fbgemm")
        prepared = tq.prepare_qat(model)
        prepared.head = small_vgg()
        with pytest.raises(QdeqError, match=r"half converted model.*torch\.ao\.quantization\.convert"):
            dequantize_model(prepared)

    def test_torchscript(self):
        script = torch.jit.script(nn.Sequential(nn.ReLU()))
        with pytest.raises(QdeqError, match=r"float model already.*strict=False"):
            dequantize_model(script)
        assert torch.equal(dequantize_model(script, strict=False)(torch.tensor([-1.0, 1.0])), torch.tensor([0.0, 1.0]))

    def test_fx(self):
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        x = torch.randn(2, 4)
        prepared = prepare_fx(nn.Sequential(nn.Linear(4, 4)).eval(), get_default_qconfig_mapping("fbgemm"), (x,))
        prepared(x)
        with pytest.raises(QdeqError, match="FX GraphModule"):
            dequantize_model(convert_fx(prepared))

    def test_unknown_classes_are_all_named_at_once(self):
        int8 = small_vgg()
        int8.one, int8.two = Unknown(2, 2), Unknown(2, 2)
        state = frozen_state(int8)
        with pytest.raises(QdeqError, match=r"one is .*Unknown; two is .*Unknown.*strict=False"):
            dequantize_model(int8)
        assert frozen_state(int8) == state

    def test_unknown_classes_stay_as_copies_unless_strict(self):
        int8 = small_vgg()
        int8.one = Unknown(2, 2)
        rebuilt, report = dequantize_model(int8, strict=False, return_report=True)
        assert type(rebuilt.one) is Unknown
        assert rebuilt.one is not int8.one
        assert [item.path for item in report.unconverted] == ["one"]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.qint8, "float32", None])
    def test_dtype(self, dtype):
        with pytest.raises(QdeqError, match="dtype: expected a floating-point"):
            dequantize_model(small_vgg(), dtype=dtype)

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
    def test_bad_scales_are_named_and_taken_only_on_demand(self, scale):
        int8 = small_vgg()
        layer = int8.classifier[3]
        scales = torch.full((10,), 0.5, dtype=torch.float64)
        scales[4] = scale
        weight = torch._make_per_channel_quantized_tensor(
            torch.ones(10, 32, dtype=torch.int8), scales, torch.zeros(10, dtype=torch.int64), 0
        )
        layer.set_weight_bias(weight, layer.bias())
        with pytest.raises(QdeqError, match=r"classifier\.3\.weight.*(channel|index) 4"):
            dequantize_model(int8)
        rebuilt = dequantize_model(int8, allow_bad_scales=True)
        assert_same_bits(rebuilt.classifier[3].weight, layer.weight().dequantize())

    def test_a_model_that_cannot_be_copied(self):
        int8 = small_vgg()
        int8.lock = iter([1])  # generators and locks cannot be copied
        int8.gen = (i for i in range(3))
        with pytest.raises(QdeqError, match="cannot be copied"):
            dequantize_model(int8)
