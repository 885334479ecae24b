"""What the tests of every family share: engines, random modules, and the check of one rebuilt layer."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from qdeq import dequantize_model
from qdeq.layers.make import hold, make
from qdeq.report import Report
from qdeq.sources.eager.walk import describe_all
from qdeq.sources.form import Options
from tests.helpers.models import assert_same_bits, engine

ENGINES = [
    name for name in ("fbgemm", "x86", "onednn", "qnnpack") if name in torch.backends.quantized.supported_engines
]
ON_ENGINES = pytest.mark.parametrize("backend", ENGINES)
SCHEMES = pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])


def random_weight(shape: tuple[int, ...], *, per_channel: bool = False, axis: int = 0) -> Tensor:
    """A qint8 tensor with random integers and scales that float32 cannot hold."""
    integers = torch.randint(-128, 128, shape, dtype=torch.int8)
    if not per_channel:
        return torch._make_per_tensor_quantized_tensor(integers, float(torch.rand(()).double() / 50 + 1e-3), 0)
    scales = torch.rand(shape[axis], dtype=torch.float64) / 50 + 1e-3
    return torch._make_per_channel_quantized_tensor(integers, scales, torch.zeros(shape[axis], dtype=torch.int64), axis)


def build(kind: type[nn.Module], *args, backend: str, bias: bool = True, per_channel: bool = False, **kwargs):
    """A quantized Linear or convolution of class ``kind`` with a random weight and bias, packed by ``backend``."""
    transposed = "Transpose" in kind.__name__
    with engine(backend), warnings.catch_warnings():
        # torch warns that its dynamic convolutions are inaccurate.
        warnings.filterwarnings("ignore", "The current implementation of the")
        module = kind(*args, **kwargs)
        shape = tuple(module.weight().shape)
        weight = random_weight(shape, per_channel=per_channel, axis=1 if transposed else 0)
        outputs = getattr(module, "out_features", None) or module.out_channels
        module.set_weight_bias(weight, torch.randn(outputs) if bias else None)
    if hasattr(module, "scale"):
        module.scale, module.zero_point = 0.25, 3
    return module


def rebuilt_and_report(module: nn.Module):
    """The float form of ``module`` and the report, with the model around it left as it was."""
    owner = nn.Sequential(module)
    rebuilt, report = dequantize_model(owner, return_report=True)
    assert owner[0] is module
    assert not _leftovers(module, rebuilt[0]), "attributes of the quantized class in the float module"
    return rebuilt[0], report


def _leftovers(module: nn.Module, rebuilt: nn.Module) -> set[str]:
    """Attributes that the rebuilt module has beyond those it was made with."""
    (layer,) = describe_all(module, Options(recover_direct_conv=True), Report()).layers
    (made,), _ = make([layer], Report(), dtype=torch.float32, allow_bad_scales=True, detailed=False)
    built = hold(made.module, layer.activation) if layer.activation else made.module
    return set(rebuilt.__dict__) - set(built.__dict__)


def check_weight_and_bias(module: nn.Module, rebuilt: nn.Module, *, backend: str) -> None:
    """Weight as torch's ``dequantize()`` of the unpacked weight, bias as torch's; their memory is their own."""
    weight, bias = module.weight(), module.bias()
    expected = weight.dequantize() if weight.is_quantized else weight
    assert_same_bits(rebuilt.weight, expected)
    assert rebuilt.weight.is_contiguous()
    assert rebuilt.weight.requires_grad
    if bias is None:
        assert rebuilt.bias is None
        assert backend != "qnnpack", "qnnpack gives zeros"
    else:
        assert_same_bits(rebuilt.bias, bias)
        assert rebuilt.bias.data_ptr() != bias.data_ptr()


def check_dynamic_output(module: nn.Module, rebuilt: nn.Module, x: Tensor, backend: str) -> None:
    """A dynamic convolution against the float one, which is given the input as torch rounds it to 8 bits.

    torch rounds the output to the grid of the input, too: the reason for its warning of poor accuracy.
    """
    scale, zero_point = torch._choose_qparams_per_tensor(x, reduce_range=backend != "qnnpack")

    def rounded(value: Tensor) -> Tensor:
        return torch.quantize_per_tensor(value, scale, zero_point, torch.quint8).dequantize()

    with engine(backend):
        expected = module(x)
    actual = rounded(rebuilt(rounded(x)))
    assert (actual - expected).abs().max() <= scale * 1.01, "more than one step"
    assert (actual == expected).float().mean() > 0.99
    assert expected.unique().numel() > 20, "clamped to a few values: it shows nothing"
