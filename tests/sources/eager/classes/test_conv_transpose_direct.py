"""fbgemm's direct transposed convolution: torch returns uninitialized memory, so the default is to refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn

from qdeq import QdeqError, dequantize_model
from qdeq.weights import direct_conv as direct
from qdeq.weights.direct_conv import recover_weight
from qdeq.weights.packed import is_direct_conv
from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import ENGINES, build, random_weight

pytestmark = pytest.mark.skipif("fbgemm" not in ENGINES, reason="the direct convolution is fbgemm's")

GEOMETRIES = [
    ((2, 2), {"stride": 2}),
    ((2, 2), {"stride": 1}),
    ((2, 1), {"stride": (1, 2)}),
    ((2, 6), {"stride": (2, 1)}),
    ((2, 3), {"stride": 2, "output_padding": 1}),
]


def live(kind=nnq.ConvTranspose2d, kernel=(2, 2), *, bias=True, channels=(16, 8), **geometry):
    """A module packed in this process, and the weight it was packed from."""
    with engine("fbgemm"):
        module = kind(*channels, kernel, **geometry)
        weight = random_weight((*channels, *kernel))
        module.set_weight_bias(weight, torch.randn(channels[1]) * 1000 if bias else None)
    assert is_direct_conv(module._packed_params)
    # fbgemm stores the scale as float32.
    scale = float(torch.tensor(weight.q_scale(), dtype=torch.float32))
    return module, torch._make_per_tensor_quantized_tensor(weight.int_repr(), scale, 0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "geometry"), GEOMETRIES, ids=str)
@pytest.mark.filterwarnings("ignore:The current implementation of the")
def test_recovery(kernel, geometry, bias):
    torch.manual_seed(101)
    for kind in (nnq.ConvTranspose2d, nnqd.ConvTranspose2d):
        module, weight = live(kind, kernel, bias=bias, **geometry)
        model = nn.Sequential(module)
        rebuilt, report = dequantize_model(model, recover_direct_conv=True, return_report=True)
        assert_same_bits(rebuilt[0].weight, weight.dequantize())
        assert (rebuilt[0].bias is not None) == bias
        if bias:
            assert_same_bits(rebuilt[0].bias, module.bias())
        assert "recovered" in report.notes["0"][0]


def test_all_are_refused_by_default_and_named_at_once():
    model = nn.ModuleDict({"up": live()[0], "again": live()[0], "fine": build(nnq.Linear, 3, 3, backend="fbgemm")})
    with pytest.raises(QdeqError, match=r"(?s)2 problems.*- up\.weight: .*recover_direct_conv=True.*- again\.weight: "):
        dequantize_model(model)


def test_a_copy_looks_the_same_and_is_refused():
    module, _ = live()
    with engine("fbgemm"):
        copied = copy.deepcopy(module)
    assert is_direct_conv(copied._packed_params)
    with pytest.raises(QdeqError, match=r"^0\.weight: .*copied, saved or loaded has lost its weight"):
        dequantize_model(nn.Sequential(copied))


@pytest.mark.parametrize(
    ("kernel", "channels", "geometry"),
    [
        ((3, 2), (16, 8), {}),
        ((2, 7), (16, 8), {}),
        ((2, 2), (12, 8), {}),
        ((2, 2), (16, 8), {"stride": 3}),
        ((2, 2), (16, 8), {"padding": 1}),
        ((2, 2), (16, 8), {"groups": 2}),
        ((2, 2), (16, 8), {"dilation": 2}),
    ],
)
def test_neighbouring_shapes_are_read_as_usual(kernel, channels, geometry):
    torch.manual_seed(102)
    with engine("fbgemm"):
        module = nnq.ConvTranspose2d(*channels, kernel, **geometry)
        weight = random_weight(tuple(module.weight().shape))
        module.set_weight_bias(weight, torch.randn(channels[1]))
    assert torch.equal(module.weight().int_repr(), weight.int_repr()), "torch is wrong for this shape, too"
    rebuilt = dequantize_model(nn.Sequential(module))
    assert_same_bits(rebuilt[0].weight, module.weight().dequantize())


@pytest.mark.parametrize("backend", [name for name in ENGINES if name in ("onednn", "qnnpack")])
def test_other_engines_give_the_same_shape_back(backend):
    module = build(nnq.ConvTranspose2d, 16, 8, (2, 2), backend=backend, stride=2)
    assert not is_direct_conv(module._packed_params)
    rebuilt = dequantize_model(nn.Sequential(module))
    assert_same_bits(rebuilt[0].weight, module.weight().dequantize())


def test_under_x86_the_packed_class_decides():
    """Some CPUs pack these shapes with onednn, others with fbgemm; output_padding always with fbgemm."""
    with engine("x86"):
        module = nnq.ConvTranspose2d(16, 8, (2, 2), stride=2, output_padding=1)
        weight = random_weight((16, 8, 2, 2))
        module.set_weight_bias(weight, None)
    assert is_direct_conv(module._packed_params)
    rebuilt = dequantize_model(nn.Sequential(module), recover_direct_conv=True)
    integers = (rebuilt[0].weight / float(torch.tensor(weight.q_scale(), dtype=torch.float32))).round()
    assert torch.equal(integers.to(torch.int8), weight.int_repr())


def test_a_wrong_reading_is_caught(monkeypatch):
    module, _ = live()
    run, calls = direct._run, []

    def wrong_once(packed, pixel, *arguments):
        calls.append(pixel)
        result = run(packed, pixel, *arguments)
        return result + (len(calls) == 3)

    monkeypatch.setattr(direct, "_run", wrong_once)
    with pytest.raises(QdeqError, match="computes with the weight it gives"):
        recover_weight(module._packed_params, (16, 8, 2, 2), where="up.weight")
