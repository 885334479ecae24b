"""Every kind of layer that convert() makes, alone, on every engine that runs it: ``fake_quant`` gives its outputs."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

import qdeq
from tests.helpers.models import engine, tq
from tests.helpers.saturation import assert_same_on_every_cpu
from tests.sources.eager.classes.helpers import ENGINES

IMAGE, VOLUME, SIGNAL, ROWS = (8, 4, 9, 9), (4, 4, 5, 7, 7), (16, 4, 33), (64, 24)


class Case:
    """A layer, the shape of its input, and its quantized class.

    Float layers go through convert(), which leaves some alone or fails on them: those are quantized already.
    """

    def __init__(self, shape: tuple[int, ...], *layers: nn.Module, to: str) -> None:
        self.shape, self.layers, self.to = shape, layers, to


def prelu() -> nn.Module:
    module = nnq.PReLU(0.05, 40, num_parameters=4)
    module.set_weight(torch.quantize_per_tensor(torch.tensor([0.1, 0.4, 0.8, 0.3]), 0.004, 5, torch.quint8))
    return module


def cases() -> dict[str, Case]:
    shapes = {1: SIGNAL, 2: IMAGE, 3: VOLUME}
    made = {
        "Linear": Case(ROWS, nn.Linear(24, 40), to="Linear"),
        "LinearReLU": Case(ROWS, nn.Linear(24, 40), nn.ReLU(), to="LinearReLU"),
        "LayerNorm": Case(ROWS, nn.LayerNorm(24), to="LayerNorm"),
        "GroupNorm": Case(IMAGE, nn.GroupNorm(2, 4), to="GroupNorm"),
        "PReLU": Case(IMAGE, prelu(), to="PReLU"),
        "Softmax": Case(ROWS, nnq.Softmax(1, 1 / 256, 0), to="Softmax"),
        "Sigmoid": Case(ROWS, nnq.Sigmoid(1 / 256, 0), to="Sigmoid"),
        "Hardswish": Case(ROWS, nn.Hardswish(), to="Hardswish"),
        "ELU": Case(ROWS, nn.ELU(0.75), to="ELU"),
        "LeakyReLU": Case(ROWS, nn.LeakyReLU(0.125), to="LeakyReLU"),
        "ReLU6": Case(ROWS, nn.ReLU6(), to="ReLU6"),
        "Dropout": Case(ROWS, nn.Dropout(0.5), to="Dropout"),
    }
    for dims, shape in shapes.items():
        conv, transposed = getattr(nn, f"Conv{dims}d"), getattr(nn, f"ConvTranspose{dims}d")
        made[f"Conv{dims}d"] = Case(shape, conv(4, 8, 3, stride=2, padding=1), to=f"Conv{dims}d")
        made[f"ConvReLU{dims}d"] = Case(shape, conv(4, 8, 3, groups=2), nn.ReLU(), to=f"ConvReLU{dims}d")
        made[f"ConvTranspose{dims}d"] = Case(shape, transposed(4, 6, 3, stride=2), to=f"ConvTranspose{dims}d")
        norm = getattr(nn, f"InstanceNorm{dims}d")(4, affine=True)
        made[f"InstanceNorm{dims}d"] = Case(shape, norm, to=f"InstanceNorm{dims}d")
        if dims > 1:
            norms = [getattr(nn, f"BatchNorm{dims}d")(4) for _ in range(2)]
            made[f"BatchNorm{dims}d"] = Case(shape, norms[0], to=f"BatchNorm{dims}d")
            made[f"BNReLU{dims}d"] = Case(shape, norms[1], nn.ReLU(), to=f"BNReLU{dims}d")
    return made


NAMES = list(cases())


def excluded(name: str, backend: str) -> bool:
    """What torch does not run, or not rightly; ``docs/supported.md`` has the list."""
    if backend == "qnnpack" and "3d" in name and "Conv" in name:
        return True  # cannot be unpacked
    # onednn's forward is wrong; x86 leaves these layers to it on CPUs with VNNI.
    return name.startswith("ConvTranspose") and backend in ("onednn", "x86")


def values(shape: tuple[int, ...]) -> Tensor:
    """Normal ones whose two ends every draw reaches: none leaves the range that another was calibrated for."""
    return torch.randn(shape).clamp(-2, 2)


def converted(case: Case, backend: str) -> nn.Module:
    """With activations in 7 bits, so that no CPU saturates."""
    if "quantized" in type(case.layers[0]).__module__:
        return nn.Sequential(nnq.Quantize(0.05, 64, torch.quint8), *case.layers, nnq.DeQuantize()).eval()
    model = nn.Sequential(tq.QuantStub(), *case.layers, tq.DeQuantStub()).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    if len(case.layers) == 2:
        tq.fuse_modules(model, [["1", "2"]], inplace=True)
    per_channel = not case.to.startswith("ConvTranspose")
    weight = tq.default_per_channel_weight_observer if per_channel else tq.default_weight_observer
    model.qconfig = tq.QConfig(activation=tq.MinMaxObserver.with_args(reduce_range=True), weight=weight)
    tq.prepare(model, inplace=True)
    model(values(case.shape))
    return tq.convert(model, inplace=True)


@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name in NAMES for backend in ENGINES if not excluded(name, backend)]
)
def test_outputs_are_the_int8_layers(name, backend):
    torch.manual_seed(31)
    case = cases()[name]
    with engine(backend), torch.no_grad():
        model = converted(case, backend)
        assert type(model[1]).__name__ == case.to
        assert "quantized" in type(model[1]).__module__
        rebuilt, report = qdeq.dequantize_model(model, activations="fake_quant", return_report=True)
        x = values(case.shape)
        assert_same_on_every_cpu(model, x)
        expected, actual = model(x), rebuilt(x)
    assert report.uncovered == []
    scale = step(rebuilt)
    assert (actual - expected).abs().max() <= 1.01 * scale, "more than one step"
    assert (actual == expected).float().mean() >= 0.99
    assert expected.unique().numel() > 10, "clamped to a few values: it shows nothing"


def step(rebuilt: nn.Module) -> Tensor:
    """The scale of the last rounding."""
    return next(value for name, value in reversed(rebuilt.state_dict().items()) if name.endswith("scale"))
