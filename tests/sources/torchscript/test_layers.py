"""Single layers in scripts: each kind of packed weight, with the parameters of the eager model's rebuild."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import qdeq
from tests.helpers.models import quantize
from tests.helpers.saturation import spread
from tests.sources.torchscript.scripts import as_script, same
from tools.models import engine, tq


class Wrapped(nn.Module):
    """A layer between stubs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.quant, self.layer, self.dequant = tq.QuantStub(), layer, tq.DeQuantStub()

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.layer(self.quant(x)))


class Cell(nn.Module):
    """A cell that runs twice."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x, self.cell(x, torch.zeros(2, 5)))


class LongShort(nn.Module):
    """An LSTM cell: its state is a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(x, (torch.zeros(2, 5), torch.ones(2, 5)))


STATIC = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), groups=2, bias=False), (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, dilation=2, padding=2), (1, 4, 5, 5, 5)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 6, 3, padding=1), (1, 4, 3, 3, 3)),
    "conv1d, relu": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.ReLU()), (2, 4, 9)),
    "linear, relu": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU()), (2, 4)),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), (2, 4, 3, 3)),
    "norms": (lambda: nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)), (2, 4, 4)),
    "activations": (
        lambda: nn.Sequential(nn.Hardswish(), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.ReLU6()),
        (2, 4),
    ),
    "prelu": (lambda: nn.PReLU(), (2, 4)),
}
DYNAMIC = {
    "lstm cell": (lambda: LongShort(), (2, 4)),
    "gru cell": (lambda: Cell(nn.GRUCell(4, 5)), (2, 4)),
    "rnn cell": (lambda: Cell(nn.RNNCell(4, 5, nonlinearity="relu")), (2, 4)),
    "gru": (lambda: nn.Sequential(nn.GRU(4, 5, bidirectional=True)), (3, 2, 4)),
}


def converted(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    if kind in DYNAMIC:
        make, shape = DYNAMIC[kind]
        kinds = {nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.GRU}
        with engine("fbgemm"):
            return tq.quantize_dynamic(make().eval(), kinds), torch.randn(shape)
    make, shape = STATIC[kind]
    layer = make()
    wrapped = Wrapped(layer).eval()
    if "transpose" in kind:
        layer.qconfig = tq.default_qconfig  # torch has no per channel observer for it
    if kind == "prelu":
        layer.qconfig = tq.QConfig(tq.default_observer, tq.default_observer)  # its weight is rounded as activations are
    fused = [["layer.0", "layer.1"]] if kind.endswith("relu") and "," in kind else None
    return quantize(spread(wrapped), torch.randn(shape), groups=fused), torch.randn(shape)


@pytest.mark.parametrize("form", ["scripted", "traced and frozen"])
@pytest.mark.parametrize("kind", [*STATIC, *DYNAMIC])
def test_layer(kind, form):
    model, x = converted(kind)
    script = as_script(model, form, x)
    expected, rebuilt = qdeq.dequantize_model(model), qdeq.dequantize_model(script)
    assert same(rebuilt(x), expected(x))
    assert len(list(rebuilt.parameters())) == len(list(expected.parameters()))
    if form == "scripted":
        for name, parameter in expected.named_parameters():
            assert torch.equal(rebuilt.get_parameter(name), parameter), name


@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2])
def test_embeddings(dtype):
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(10, 16, mode="sum", include_last_offset=True)
            self.one = nn.Embedding(10, 16)

        def forward(self, indices: Tensor, offsets: Tensor) -> Tensor:
            return self.bag(indices, offsets) + self.one(indices[:2])

    bits = {
        torch.quint8: tq.float_qparams_weight_only_qconfig,
        torch.quint4x2: tq.float_qparams_weight_only_qconfig_4bit,
    }
    with engine("fbgemm"):
        model = tq.quantize_dynamic(Bags().eval(), {"bag": bits[dtype], "one": bits[dtype]})
    given = torch.tensor([1, 2, 4, 9]), torch.tensor([0, 3, 4])
    rebuilt = qdeq.dequantize_model(torch.jit.script(model))
    expected = qdeq.dequantize_model(model)
    assert same(rebuilt(*given), expected(*given))
    assert set(rebuilt.state_dict()) == {"bag.weight", "one.weight"}


def test_a_parameter_that_freezing_quantized_keeps_its_shape():
    """Freezing folds what quantizes a parameter: its rounded values are left."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.quantize_per_tensor(x, 0.1, 64, torch.quint8)
            scale = torch.quantize_per_tensor(self.scale, 0.03, 100, torch.quint8)
            return torch.ops.quantized.mul(x, scale, 0.1, 64).dequantize()

    model = Scaled().eval()
    rebuilt = qdeq.dequantize_model(torch.jit.freeze(torch.jit.script(model)))
    x = torch.randn(2, 4, 3, 3)
    rounded = torch.quantize_per_tensor(model.scale.detach(), 0.03, 100, torch.quint8).dequantize()
    assert same(rebuilt(x), x * rounded)
    assert [parameter.shape for parameter in rebuilt.parameters()] == [(4, 1, 1)]


def test_a_weight_that_torch_saved_as_uninitialized_memory_is_refused():
    layer = nn.ConvTranspose2d(8, 8, (2, 3))
    layer.qconfig = tq.default_qconfig
    model = quantize(Wrapped(layer).eval(), torch.randn(2, 8, 4, 4))
    with pytest.raises(qdeq.QdeqValueError, match="layer: expected a packed weight that can be read back"):
        qdeq.dequantize_model(torch.jit.script(model))
