from __future__ import annotations

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager.classes import norm as family
from tests.helpers.models import assert_same_bits
from tests.sources.eager.classes.helpers import rebuilt_and_report

IMAGE = (3, 6, 5, 5)


def check(module: nn.Module, target: type[nn.Module], shape, tolerance: float = 0.51, **attributes):
    """Same parameters, same arithmetic up to half a step of the output, nothing shared."""
    rebuilt, report = rebuilt_and_report(module)
    assert type(rebuilt) is target
    for name, value in attributes.items():
        assert getattr(rebuilt, name) == value, name
    for name, tensor in rebuilt.state_dict().items():
        source = getattr(module, name)
        assert torch.equal(tensor, source), name
        assert tensor.data_ptr() != source.data_ptr(), name
    scale, zero_point = report.activation_qparams["0"]
    x = torch.quantize_per_tensor(torch.randn(shape), 0.03, 128, torch.quint8)
    expected = module(x).dequantize()
    actual = rebuilt.eval()(x.dequantize()).clamp((0 - zero_point) * scale, (255 - zero_point) * scale)
    assert ((actual - expected).abs() / scale).max() <= tolerance
    return rebuilt


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm(dims, relu):
    torch.manual_seed(31)
    kind = getattr(nniq, f"BNReLU{dims}d") if relu else getattr(nnq, f"BatchNorm{dims}d")
    target = getattr(family, f"BNReLU{dims}d") if relu else getattr(nn, f"BatchNorm{dims}d")
    module = kind(6, eps=1e-3, momentum=0.3)
    with torch.no_grad():
        module.weight.normal_()
        module.bias.normal_()
        module.running_mean.normal_()
        module.running_var.uniform_(0.5, 2)
        module.num_batches_tracked.fill_(17)
    module.scale, module.zero_point = torch.tensor(0.05), torch.tensor(100)
    # The last digit of the int8 op's own 1/sqrt differs: one step where the float value lies between two.
    rebuilt = check(module, target, (3, 6, *[5] * dims), 1.01, eps=1e-3, momentum=0.3, num_features=6)
    assert int(rebuilt.num_batches_tracked) == 17
    if relu:
        assert (rebuilt(torch.randn(3, 6, *[5] * dims)) >= 0).all()


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(affine):
    torch.manual_seed(32)
    weight, bias = (nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5, 5))) if affine else (None, None)
    module = nnq.LayerNorm((5, 5), weight, bias, 0.04, 120, eps=1e-4, elementwise_affine=affine)
    check(module, nn.LayerNorm, IMAGE, 1.01, eps=1e-4, normalized_shape=(5, 5), elementwise_affine=affine)


def test_layer_norm_without_bias():
    module = nnq.LayerNorm(5, nn.Parameter(torch.randn(5)), None, 0.04, 120)
    rebuilt = check(module, nn.LayerNorm, IMAGE, 1.01)
    assert set(rebuilt.state_dict()) == {"weight"}


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm(affine):
    torch.manual_seed(33)
    weight, bias = (nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))) if affine else (None, None)
    module = nnq.GroupNorm(3, 6, weight, bias, 0.04, 120, eps=1e-4, affine=affine)
    check(module, nn.GroupNorm, IMAGE, 1.01, eps=1e-4, num_groups=3, num_channels=6, affine=affine)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_as_torch_converts_it(dims, affine):
    """torch's from_float passes ``affine`` as the momentum; the parameters tell."""
    torch.manual_seed(34)
    layer = getattr(nn, f"InstanceNorm{dims}d")(6, eps=1e-4, affine=affine)
    if affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    kind = getattr(nnq, f"InstanceNorm{dims}d")
    module = kind(6, layer.weight, layer.bias, 0.04, 120, layer.eps, layer.affine)
    rebuilt = check(module, type(layer), (3, 6, *[7] * dims), 1.01, eps=1e-4, affine=affine, momentum=0.1)
    assert list(rebuilt.state_dict()) == list(layer.state_dict())


def test_parameters_are_copies():
    weight = nn.Parameter(torch.randn(5))
    module = nnq.LayerNorm(5, weight, nn.Parameter(torch.randn(5)), 0.04, 120)
    before = weight.detach().clone()
    rebuilt, _ = rebuilt_and_report(module)
    with torch.no_grad():
        rebuilt.weight.zero_()
    assert_same_bits(weight.detach(), before)
