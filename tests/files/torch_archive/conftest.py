"""Small quantized models, each with the float bits that its own modules give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.ao.quantization as tq
from torch import Tensor, nn

from tests.files.torch_archive import models
from tools.models import engine


@dataclass
class Case:
    """A live quantized model and what its weights are."""

    model: nn.Module
    expected: dict[str, Tensor] = field(default_factory=dict)
    scriptable: bool = True


def live_weights(model: nn.Module) -> dict[str, Tensor]:
    """The float state dict by torch's own ``weight().dequantize()``, independent of qdeq."""
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if hasattr(module, "_all_weight_values"):
            for key, value in _rnn(module).items():
                found[prefix + key] = value
        elif type(module).__name__.endswith("Cell"):
            for part, pack in (("ih", module._packed_weight_ih), ("hh", module._packed_weight_hh)):
                weight, bias = pack.unpack()
                found[f"{prefix}weight_{part}"] = weight.dequantize() if weight.is_quantized else weight
                found[f"{prefix}bias_{part}"] = bias
        elif callable(getattr(module, "weight", None)):
            weight = module.weight()
            found[prefix + "weight"] = weight.dequantize() if weight.is_quantized else weight
            if callable(getattr(module, "bias", None)) and module.bias() is not None:
                found[prefix + "bias"] = module.bias()
        else:
            own = dict(module.named_parameters(recurse=False))
            found.update({prefix + n: p for n, p in own.items()})
    return {name: value.detach().clone() for name, value in found.items()}


def _rnn(module: nn.Module) -> dict[str, Tensor]:
    found = {}
    directions = 2 if module.bidirectional else 1
    for at, packed in enumerate(module._all_weight_values):
        tail = f"_l{at // directions}" + ("_reverse" if at % directions else "")
        for part, pack in zip(("ih", "hh"), packed.param.__getstate__()[0][4], strict=True):
            weight, bias = pack.unpack()
            found[f"weight_{part}{tail}"] = weight.dequantize() if weight.is_quantized else weight
            found[f"bias_{part}{tail}"] = bias
    return found


def _static(model: nn.Module, fuse: list[list[str]], shape: tuple[int, ...]) -> nn.Module:
    model = tq.fuse_modules(model.eval(), fuse) if fuse else model.eval()
    model.qconfig = tq.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = tq.prepare(model)
    prepared(torch.randn(shape))
    return tq.convert(prepared)


def _vgg() -> Case:
    return Case(_static(models.TinyVGG(), [], (2, 3, 8, 8)))


def _vgg_bn() -> Case:
    fuse = [["features.0", "features.1", "features.2"], ["features.3", "features.4", "features.5"]]
    model = models.TinyVGG(norm=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return Case(_static(model, fuse, (2, 3, 8, 8)))


def _dynamic(dtype: torch.dtype) -> Case:
    kinds: set[type[nn.Module]] = {nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell, nn.Linear}
    return Case(tq.quantize_dynamic(models.Recurrent().eval(), kinds, dtype=dtype))


def _embedding() -> Case:
    model = models.Tables().eval()
    model.a.qconfig = model.c.qconfig = tq.float_qparams_weight_only_qconfig  # type: ignore[assignment]
    model.b.qconfig = tq.float_qparams_weight_only_qconfig_4bit  # type: ignore[assignment]
    return Case(tq.convert(tq.prepare(model)))


def _fx() -> Case:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    example = torch.randn(2, 3, 8, 8)
    prepared = prepare_fx(models.Functional().eval(), tq.get_default_qconfig_mapping("fbgemm"), (example,))
    prepared(example)
    case = Case(convert_fx(prepared))
    for name in ("_packed_weight_0", "_packed_weight_1"):
        weight, bias = getattr(case.model, name).unpack()
        case.expected[f"{name}.weight"] = weight.dequantize()
        if bias is not None:
            case.expected[f"{name}.bias"] = bias.detach().clone()
    return case


_BUILDERS: dict[str, Callable[[], Case]] = {
    "vgg": _vgg,
    "vgg_bn": _vgg_bn,
    "dynamic": lambda: _dynamic(torch.qint8),
    "dynamic_fp16": lambda: _dynamic(torch.float16),
    "embedding": _embedding,
    "fx": _fx,
}
_CACHE: dict[str, Case] = {}


def build(name: str) -> Case:
    """Build a case once."""
    if name not in _CACHE:
        torch.manual_seed(sum(map(ord, name)))
        with engine("fbgemm"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = _BUILDERS[name]()
        case.expected = {**live_weights(case.model), **case.expected}
        _CACHE[name] = case
    return _CACHE[name]


@pytest.fixture(params=list(_BUILDERS))
def case(request: pytest.FixtureRequest) -> Case:
    """Every model in turn."""
    return build(request.param)


@pytest.fixture
def build_case() -> Callable[[str], Case]:
    """Build one model by name."""
    return build
