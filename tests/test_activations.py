"""``activations=``: what each mode holds, how close it is to int8, and how it is taken out again."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qdeq
from qdeq.postprocess import Clamp, FakeQuantize, Qparams
from tests.helpers.models import FloatFunctional, assert_same_bits, engine, quantize, small_vgg, tq

MODES = ("drop", "clamp", "fake_quant")


def share_equal(a: Tensor, b: Tensor) -> float:
    return float((a == b).float().mean())


def assert_imitates(model: nn.Module, x: Tensor, minimum: float = 0.99) -> nn.Module:
    """The rebuilt model gives the int8 model's outputs, all but a few exactly and those within a step."""
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert report.uncovered == []
    with torch.no_grad():
        expected, actual = model(x), rebuilt(x)
    assert share_equal(actual, expected) >= minimum
    return rebuilt


class Functions(nn.Module):
    """A forward with the one operation ``function`` between a convolution and the output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.quant = tq.QuantStub()
        self.layer = nn.Conv2d(3, 16, 3, padding=1)
        self.function = FUNCTIONS[name]
        # convert() warns of one that calibration never reached.
        self.math = FloatFunctional() if name in MATH else None
        self.dequant = tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.function(self, self.layer(self.quant(x))))


FUNCTIONS = {
    "avg_pool2d": lambda self, x: F.avg_pool2d(x, 2),
    "avg_pool2d padded": lambda self, x: F.avg_pool2d(x, 3, stride=1, padding=1),
    "adaptive_avg_pool2d": lambda self, x: F.adaptive_avg_pool2d(x, 3),
    "mean": lambda self, x: x.mean([2, 3]),
    "cat": lambda self, x: torch.cat([x, F.relu(x)], 1),
    "sigmoid": lambda self, x: torch.sigmoid(x),
    "tanh": lambda self, x: x.tanh(),
    "hardsigmoid": lambda self, x: F.hardsigmoid(x),
    "relu6": lambda self, x: F.relu6(x),
    "clamp": lambda self, x: x.clamp(-0.5, 0.7),
    "leaky_relu": lambda self, x: F.leaky_relu(x, 0.2),
    "bilinear": lambda self, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "nearest": lambda self, x: F.interpolate(x, scale_factor=2),
    "max_pool2d": lambda self, x: F.max_pool2d(x, 2),
    "chain": lambda self, x: torch.sigmoid(F.avg_pool2d(F.relu(x), 2).flatten(1)).chunk(2, 1)[0],
}


MATH = {
    "add scalar": lambda self, x: self.math.add_scalar(x, 0.3),
    "add large scalar": lambda self, x: self.math.add_scalar(x, 40.0),
    "add negative scalar": lambda self, x: self.math.add_scalar(x, -40.0),
    "mul scalar": lambda self, x: self.math.mul_scalar(x, 1.7),
    "mul negative scalar": lambda self, x: self.math.mul_scalar(x, -0.6),
    "add": lambda self, x: self.math.add(x, x),
    "add_relu": lambda self, x: self.math.add_relu(x, x),
    "mul": lambda self, x: self.math.mul(x, x),
    "cat of FloatFunctional": lambda self, x: self.math.cat([x, x], 1),
}
FUNCTIONS |= MATH


# torch's converter warns of a FloatFunctional whose only operation takes a constant: nothing observes it.
@pytest.mark.filterwarnings("ignore:must run observer before calling calculate_qparams")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_in_the_users_forward_are_imitated(name):
    torch.manual_seed(1)
    model = quantize(Functions(name), torch.randn(8, 3, 12, 12))
    rebuilt = assert_imitates(model, torch.randn(8, 3, 12, 12))
    assert isinstance(rebuilt, Functions)


@pytest.mark.parametrize(
    "module",
    [
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Tanh(),
        nn.Hardsigmoid(),
        nn.Hardtanh(-0.3, 0.4),
        nn.ReLU6(),
        nn.LeakyReLU(0.1),
        nn.Hardswish(),
        nn.ELU(),
        nn.Sigmoid(),
        nn.MaxPool2d(2),
        nn.InstanceNorm2d(16, affine=True),
    ],
    ids=lambda module: type(module).__name__,
)
def test_float_and_quantized_modules_are_imitated(module):
    torch.manual_seed(2)
    model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 16, 3), module, nn.Conv2d(16, 4, 1), tq.DeQuantStub())
    model = quantize(model, torch.randn(8, 3, 12, 12))
    assert_imitates(model, torch.randn(8, 3, 12, 12))


@pytest.mark.parametrize("backend", ["fbgemm", "x86", "qnnpack", "onednn"])
@pytest.mark.parametrize("fuse", [True, False])
def test_single_layers_on_every_engine(backend, fuse):
    if backend not in torch.backends.quantized.supported_engines:
        pytest.skip(f"this torch has no {backend}")
    torch.manual_seed(3)
    groups = [["1", "2"]] if fuse else None
    with engine(backend):
        model = nn.Sequential(tq.QuantStub(), nn.Conv2d(3, 32, 3), nn.ReLU(), tq.DeQuantStub()).eval()
        if fuse:
            tq.fuse_modules(model, groups, inplace=True)
        # 7-bit activations: no CPU saturates.
        model.qconfig = tq.get_default_qconfig("fbgemm")
        tq.prepare(model, inplace=True)
        model(torch.randn(8, 3, 12, 12))
        tq.convert(model, inplace=True)
        assert_imitates(model, torch.randn(8, 3, 12, 12))


@pytest.mark.parametrize("bn", [False, True])
def test_modes_hold_the_same_parameters(bn):
    model = small_vgg(bn=bn)
    drop, clamp, fake = (qdeq.dequantize_model(model, activations=mode) for mode in MODES)
    parameters = dict(drop.named_parameters())
    for other in (clamp, fake):
        assert list(dict(other.named_parameters())) == list(parameters)
        for name, value in other.named_parameters():
            assert_same_bits(value, parameters[name])
    assert set(drop.state_dict()) == set(parameters)
    assert set(clamp.state_dict()) == set(fake.state_dict()) > set(parameters)


def test_scales_are_the_int8_models():
    model = small_vgg()
    fake, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    state = fake.state_dict()
    assert state["quant.activation_post_process.scale"] == model.quant.scale
    assert state["quant.activation_post_process.zero_point"] == model.quant.zero_point
    # A fused ReLU went back to its own place, and so did the rounding: once, after the ReLU.
    assert "features.0.activation_post_process.scale" not in state
    assert float(state["features.1.activation_post_process.scale"]) == pytest.approx(model.features[0].scale, rel=1e-7)
    assert state["features.1.activation_post_process.zero_point"] == model.features[0].zero_point
    assert len([name for name in state if name.endswith("zero_point")]) == len(report.activation_qparams)


def test_held_activation_is_rounded_once_and_after_the_relu():
    torch.manual_seed(4)

    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > -1e9:
                x = self.relu(self.conv(self.quant(x)))
            return self.dequant(x)

    x = torch.randn(4, 3, 8, 8)
    model = quantize(Untraceable(), x, groups=[["conv", "relu"]])
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert share_equal(rebuilt(x), model(x)) >= 0.99
    assert type(rebuilt.conv).__name__ == "ConvReLU2d"
    assert [type(m).__name__ for m in rebuilt.modules()].count("FakeQuantize") == 2
    assert [item.path for item in report.uncovered] == [""]
    assert "cannot be traced" in report.uncovered[0].reason
    assert "not imitated" in str(report)


def test_what_is_not_covered_is_named():
    torch.manual_seed(5)
    dynamic = tq.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, torch.qint8)
    _, report = qdeq.dequantize_model(dynamic, activations="fake_quant", return_report=True)
    assert [(item.path, "dynamic" in item.operation) for item in report.uncovered] == [("0", True)]


def test_clamp_uses_the_converted_range_not_reduce_range():
    # The fbgemm qconfig observes with reduce_range: 0..127 chose the scale, but the op clamps to 0..255.
    model = small_vgg()
    clamp = qdeq.dequantize_model(model, activations="clamp")
    module = clamp.quant.activation_post_process
    assert isinstance(module, Clamp)
    scale, zero_point = float(model.quant.scale), int(model.quant.zero_point)
    x = torch.tensor([-1e6, 1e6, 0.1234])
    assert torch.allclose(module(x), torch.tensor([-zero_point * scale, (255 - zero_point) * scale, 0.1234]))
    huge = torch.full((1, 3, 16, 16), 1e6)
    with torch.no_grad():
        assert_same_bits(clamp.quant(huge), model.quant(huge).dequantize())


def test_clamp_is_nearer_to_int8_than_drop_where_values_leave_the_range():
    model = small_vgg()
    x = 4 * torch.randn(16, 3, 16, 16)  # calibrated on values of order 1
    with torch.no_grad():
        expected = model(x)
        errors = {
            mode: float((qdeq.dequantize_model(model, activations=mode)(x) - expected).abs().mean()) for mode in MODES
        }
    assert errors["fake_quant"] < errors["clamp"] < errors["drop"]


@pytest.mark.parametrize("mode", ["clamp", "fake_quant"])
@pytest.mark.parametrize("name", ["avg_pool2d", "add", "chain"])
def test_drop_activations_gives_the_drop_model(mode, name):
    torch.manual_seed(6)
    model = quantize(Functions(name), torch.randn(4, 3, 12, 12))
    drop = qdeq.dequantize_model(model)
    rebuilt = qdeq.dequantize_model(model, activations=mode)
    keys = list(rebuilt.state_dict())
    dropped = qdeq.drop_activations(rebuilt)
    assert list(rebuilt.state_dict()) == keys
    assert type(dropped) is Functions
    assert str(dropped) == str(drop)
    assert list(dropped.state_dict()) == list(drop.state_dict())
    assert [len(m._forward_hooks) for m in dropped.modules()] == [len(m._forward_hooks) for m in drop.modules()]
    assert set(vars(dropped)) == set(vars(drop))
    x = torch.randn(4, 3, 12, 12)
    assert_same_bits(dropped(x), drop(x))


def test_drop_activations_refuses_what_is_no_module():
    with pytest.raises(qdeq.QdeqTypeError, match="model"):
        qdeq.drop_activations({"a": 1})


@pytest.mark.parametrize("bad", ["none", None, True, 1])
def test_unknown_mode_is_named(bad):
    with pytest.raises(qdeq.QdeqValueError, match="activations: expected one of drop, clamp, fake_quant"):
        qdeq.dequantize_model(small_vgg(), activations=bad)


class Pooled(nn.Module):
    """At module level, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.conv = tq.QuantStub(), tq.DeQuantStub(), nn.Conv2d(3, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(F.avg_pool2d(self.conv(self.quant(x)), 2))


def test_rewritten_models_copy_pickle_and_reload():
    torch.manual_seed(7)
    x = torch.randn(4, 3, 12, 12)
    model = quantize(Pooled(), x)
    rebuilt = qdeq.dequantize_model(model, activations="fake_quant")
    expected = rebuilt(x)
    file = io.BytesIO(pickle.dumps(rebuilt))
    for copied in (copy.deepcopy(rebuilt), pickle.load(file)):
        assert isinstance(copied, Pooled)
        assert copied.quantize_avg_pool2d is not rebuilt.quantize_avg_pool2d
        assert_same_bits(copied(x), expected)
    other = qdeq.dequantize_model(quantize(Pooled(), 3 * x), activations="fake_quant")
    other.load_state_dict(rebuilt.state_dict())
    assert_same_bits(other(x), expected)


def test_shared_block_at_two_scales_is_named():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.first, self.second, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.dequant(self.pool(self.second(self.pool(self.first(self.quant(x))))))

    model = quantize(Twice(), torch.randn(2, 3, 8, 8))
    rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
    assert [(item.path, item.operation) for item in report.uncovered] == [("pool", "AvgPool2d")]
    assert "different scales" in report.uncovered[0].reason
    assert not list(rebuilt.pool.children())


def test_user_hooks_see_the_rounded_output():
    model = small_vgg(fuse=False)
    seen = []
    model.features[0].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(2, 3, 16, 16)
    model(x)
    qdeq.dequantize_model(model, activations="fake_quant")(x)
    assert share_equal(seen[1], seen[0].dequantize()) >= 0.99


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scale_stays_float32_when_the_model_is_cast(dtype):
    model = small_vgg()
    for rebuilt in (
        qdeq.dequantize_model(model, activations="fake_quant", dtype=dtype),
        qdeq.dequantize_model(model, activations="fake_quant").to(dtype),
    ):
        scale = rebuilt.quant.activation_post_process.scale
        assert scale.dtype == torch.float32
        assert scale == model.quant.scale
        assert rebuilt(torch.randn(2, 3, 16, 16, dtype=dtype)).dtype == dtype


def test_signed_inputs_use_their_own_range():
    model = nn.Sequential(tq.QuantStub(), tq.DeQuantStub()).eval()
    model.qconfig = tq.QConfig(
        activation=tq.MinMaxObserver.with_args(dtype=torch.qint8), weight=tq.default_weight_observer
    )
    tq.prepare(model, inplace=True)
    model(torch.randn(100))
    tq.convert(model, inplace=True)
    rebuilt = qdeq.dequantize_model(model, activations="fake_quant")
    assert (rebuilt[0].activation_post_process.quant_min, rebuilt[0].activation_post_process.quant_max) == (-128, 127)
    x = 3 * torch.randn(1000)
    assert share_equal(rebuilt(x), model(x)) >= 0.99


@pytest.mark.parametrize(("ties", "expected"), [("integer", [1.0, 3.0]), ("value", [2.0, 2.0])])
def test_ties_of_averages(ties, expected):
    # Halfway, with an odd zero point: integers 33 + 1.5 and 33 + 2.5. A float a hair beside it is still a tie.
    module = FakeQuantize(Qparams(1.0, 33), ties=ties)
    for nudge in (-1e-6, 0.0, 1e-6):
        assert module(torch.tensor([1.5, 2.5]) + nudge).tolist() == expected
    x = torch.tensor([1.2, 300.0], requires_grad=True)
    module(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0]
