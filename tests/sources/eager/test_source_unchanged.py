"""Whatever goes wrong, the source model stays as it was, bit for bit."""

from __future__ import annotations

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import Tensor, nn

import qdeq
from qdeq import QdeqError, dequantize_model
from qdeq.sources.eager import mappings
from tests.helpers.models import engine, small_vgg
from tests.sources.eager.classes.helpers import ENGINES, build


def raw(value: Tensor) -> object:
    """Shape, dtype and the bytes of a plain or quantized tensor."""
    integers = value.int_repr() if value.is_quantized else value.detach()
    scales = str(value.q_scale()) if value.is_quantized and value.qscheme() == torch.per_tensor_affine else ""
    return tuple(value.shape), str(value.dtype), integers.reshape(-1).view(torch.uint8).numpy().tobytes(), scales


def packed(module: nn.Module) -> object:
    """The bytes of what ``weight()`` and ``bias()`` unpack; None where torch cannot."""
    try:
        weight, bias = module.weight(), module.bias()
    except Exception:  # noqa: BLE001 (a broken module may raise anything, and then it must do so before and after)
        return None
    return raw(weight), None if bias is None else raw(bias)


def fingerprint(model: nn.Module) -> dict[str, object]:
    """Everything that a conversion could change in a model: classes, identities, flags, hooks, bytes."""
    result: dict[str, object] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        tensors = {**module._parameters, **module._buffers}
        hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._state_dict_hooks]
        result[path] = {
            "class": type(module),
            "identity": id(module),
            "children": {name: id(child) for name, child in module._modules.items()},
            "attributes": {name: id(value) for name, value in module.__dict__.items() if name[0] != "_"},
            "packed object": id(module.__dict__.get("_packed_params")),
            "training": module.training,
            "tensors": {name: value if value is None else (id(value), raw(value)) for name, value in tensors.items()},
            "gradients": {name: p.requires_grad for name, p in module._parameters.items() if p is not None},
            "hooks": [dict(table) for table in hooks],
            "packed": packed(module) if callable(getattr(module, "weight", None)) else None,
        }
    return result


class Unknown(nnq.Linear):
    pass


class NoDeepcopy(nn.Linear):
    def __deepcopy__(self, memo):
        raise TypeError("this module refuses copy.deepcopy")


class Holder:
    def __init__(self, module: nn.Module) -> None:
        self.module = module


def linear() -> nnq.Linear:
    return build(nnq.Linear, 4, 4, backend="fbgemm")


def narrow() -> nn.Module:
    module = linear()
    module.in_features = 5
    return module


def half_converted() -> nn.Module:
    layer = nn.Sequential(nn.Linear(4, 4))
    layer.qconfig = tq.default_qconfig
    return tq.prepare(layer)


def without_weight() -> nn.Module:
    module = linear()
    del module._packed_params._packed_params
    return module


def bad_scale() -> nn.Module:
    module = linear()
    weight = torch._make_per_tensor_quantized_tensor(module.weight().int_repr(), 0.0, 0)
    module.set_weight_bias(weight, module.bias())
    return module


def direct_conv() -> nn.Module:
    return build(nnq.ConvTranspose2d, 16, 8, (2, 2), backend="fbgemm", stride=2)


def qnnpack_3d() -> nn.Module:
    with engine("qnnpack"):
        return nnq.Conv3d(4, 4, 3)


def hidden() -> nn.Module:
    module = nn.Sequential(linear())
    module.holder = Holder(linear())
    return module


BAD = {
    "an unknown class": lambda: Unknown(4, 4),
    "another shape than declared": narrow,
    "half converted": half_converted,
    "no weight": without_weight,
    "a scale of zero": bad_scale,
    "a direct transposed convolution": direct_conv,
    "a neighbour that cannot be copied": lambda: NoDeepcopy(4, 4),
    "a quantized module inside another object": hidden,
}
if "qnnpack" in ENGINES:
    BAD["a 3d convolution of qnnpack"] = qnnpack_3d


def around(part: nn.Module) -> nn.Module:
    """A healthy model with one bad part; hooks, a shared module and frozen parameters on it."""
    model = small_vgg()
    model.bad = nn.ModuleList([linear(), part, nn.Linear(4, 4)])
    model.again = model.bad[0]
    model.bad[2].weight.requires_grad_(False)
    model.bad[2].train()
    model.features[0].register_forward_hook(lambda *_: None)
    return model


def assert_refused_untouched(model: nn.Module, **options) -> None:
    before = fingerprint(model)
    with pytest.raises(QdeqError):
        dequantize_model(model, **options)
    assert fingerprint(model) == before


@pytest.mark.parametrize("activations", ["drop", "fake_quant"])
@pytest.mark.parametrize("what", BAD)
def test_after_a_failure(what, activations):
    # The direct convolution's weight is uninitialized memory: only its module is looked at, not what weight() says.
    model = around(BAD[what]())
    if what == "a direct transposed convolution":
        model.bad[1].weight = None
    assert_refused_untouched(model, activations=activations, unfold_bn=activations == "fake_quant")


@pytest.mark.parametrize("result", [None, torch.ones(2), nn.Linear(9, 9), "itself", ZeroDivisionError])
def test_after_a_failure_of_a_registered_builder(result, monkeypatch):
    monkeypatch.setattr(mappings, "_REGISTERED", dict(mappings._REGISTERED))

    def builder(module, path, report):
        report.note(path, "was here")
        if result is ZeroDivisionError:
            raise ZeroDivisionError
        return module if result == "itself" else result

    qdeq.register(Unknown, builder)
    assert_refused_untouched(around(Unknown(4, 4)))


def test_after_a_success():
    model = around(nn.Identity())
    before = fingerprint(model)
    for activations in ("drop", "clamp", "fake_quant"):
        rebuilt = dequantize_model(model, activations=activations, unfold_bn=True)
        with torch.no_grad():
            for parameter in rebuilt.parameters():
                parameter.fill_(7.0)
        rebuilt.train()
    assert fingerprint(model) == before


def test_the_fingerprint_sees_a_change():
    model = around(nn.Identity())
    changes = [
        lambda: model.bad[2].bias.data.add_(1),
        lambda: model.classifier[0].bias().data.add_(1),  # torch hands out the packed bias itself
        lambda: model.features[0].eval(),
        lambda: model.features[0]._forward_hooks.clear(),
        lambda: setattr(model, "quant", nn.Identity()),
    ]
    for change in changes:
        before = fingerprint(model)
        change()
        assert fingerprint(model) != before
