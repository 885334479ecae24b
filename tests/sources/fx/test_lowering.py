"""Every operation that torch's lowering of FX graphs names, one a model: float again, and rounded as int8 rounds."""

from __future__ import annotations

import ast
import inspect
import operator
import textwrap

import pytest
import torch
import torch.ao.nn.quantized.reference as nnqr
from torch import nn
from torch.ao.nn import intrinsic as nni
from torch.ao.quantization.fx import _lower_to_native_backend as lower
from torch.nn import functional as F

from qdeq import dequantize_model
from tests.helpers.graphs import converted, floats
from tools.graph_agreement import node_agreement

IMAGE = (4, 16, 6, 6)
ROW = (4, 16, 6)
VOLUME = (2, 16, 4, 4, 4)
LISTS = (
    *(lower.is_fixed_qparams_node, lower.is_default_node, lower.is_copy_node),
    *(lower.is_general_tensor_shape_node, lower.is_other_node),
)


def _listed(name: str) -> set:
    """What torch's functions have in their local lists of this name."""
    found = set()
    for function in LISTS:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and target.id == name:
                values = eval(compile(ast.Expression(node.value), "torch", "eval"), vars(lower))
                found |= set(values)
    return found


def _flat(x):
    return torch.flatten(x, 1)


def _prelu():
    """Slopes on a grid that has 1: torch's kernel multiplies positive values by the nearest to it."""
    module = nn.PReLU(16)
    with torch.no_grad():
        module.weight.copy_(torch.linspace(0.05, 1.1, 16))
    return module


FUNCTIONS = {
    F.hardsigmoid: (F.hardsigmoid, IMAGE),
    F.sigmoid: (F.sigmoid, IMAGE),
    torch.sigmoid: (torch.sigmoid, IMAGE),
    torch.tanh: (torch.tanh, IMAGE),
    F.elu: (lambda x: F.elu(x, 0.5), IMAGE),
    F.hardswish: (F.hardswish, IMAGE),
    F.instance_norm: (lambda x: F.instance_norm(x), IMAGE),
    F.layer_norm: (lambda x: F.layer_norm(x, [6]), IMAGE),
    F.leaky_relu: (lambda x: F.leaky_relu(x, 0.2), IMAGE),
    F.dropout: (lambda x: F.dropout(x, 0.3, False), IMAGE),
    torch.adaptive_avg_pool1d: (lambda x: torch.adaptive_avg_pool1d(x, 2), ROW),
    F.adaptive_avg_pool2d: (lambda x: F.adaptive_avg_pool2d(x, 2), IMAGE),
    F.adaptive_avg_pool3d: (lambda x: F.adaptive_avg_pool3d(x, 2), VOLUME),
    F.hardtanh: (lambda x: F.hardtanh(x, -0.7, 0.7), IMAGE),
    F.hardtanh_: (lambda x: F.hardtanh_(x + 1, -0.7, 0.7), IMAGE),
    F.interpolate: (lambda x: F.interpolate(x, scale_factor=2.0), IMAGE),
    F.max_pool1d: (lambda x: F.max_pool1d(x, 2), ROW),
    F.max_pool2d: (lambda x: F.max_pool2d(x, 2), IMAGE),
    F.max_pool3d: (lambda x: F.max_pool3d(x, 2), VOLUME),
    F.relu: (F.relu, IMAGE),
    F.relu6: (F.relu6, IMAGE),
    torch.avg_pool1d: (lambda x: torch.avg_pool1d(x, 2), ROW),
    torch._C._nn.avg_pool2d: (lambda x: F.avg_pool2d(x, 2), IMAGE),
    torch._C._nn.avg_pool3d: (lambda x: F.avg_pool3d(x, 2), VOLUME),
    torch.clamp: (lambda x: torch.clamp(x, -0.6, 0.9), IMAGE),
    torch.flatten: (_flat, IMAGE),
    torch.mean: (lambda x: torch.mean(x, [2, 3]), IMAGE),
    operator.floordiv: (lambda x: (x + x).reshape(x.shape[0], x.shape[1] // 2, -1), IMAGE),
    torch.channel_shuffle: (lambda x: torch.channel_shuffle(x + x, 2), IMAGE),
    torch.narrow: (lambda x: torch.narrow(x, 1, 2, 5), IMAGE),
    torch.transpose: (lambda x: torch.transpose(x, 1, 2), IMAGE),
    torch.repeat_interleave: (lambda x: torch.repeat_interleave(x, 2, 1), IMAGE),
    torch.squeeze: (lambda x: torch.squeeze(x, 1), (4, 1, 6)),
    torch.stack: (lambda x: torch.stack([x, x], 1), ROW),
    torch.unsqueeze: (lambda x: torch.unsqueeze(x, 1), ROW),
    F.pixel_shuffle: (lambda x: F.pixel_shuffle(x, 2), IMAGE),
    F.pixel_unshuffle: (lambda x: F.pixel_unshuffle(x, 2), IMAGE),
    torch.cat: (lambda x: torch.cat([x, x], 1), IMAGE),
}
METHODS = {
    "sigmoid": (lambda x: x.sigmoid(), IMAGE),
    "sigmoid_": (lambda x: (x + 1).sigmoid_(), IMAGE),
    "tanh": (lambda x: x.tanh(), IMAGE),
    "tanh_": (lambda x: (x + 1).tanh_(), IMAGE),
    "clamp": (lambda x: x.clamp(-0.6, 0.9), IMAGE),
    "mean": (lambda x: x.mean([2, 3]), IMAGE),
    "relu": (lambda x: x.relu(), IMAGE),
    "relu_": (lambda x: (x * 2).relu_(), IMAGE),
    "contiguous": (lambda x: x.contiguous(), IMAGE),
    "detach": (lambda x: x.detach(), IMAGE),
    "detach_": (lambda x: (x + 1).detach_(), IMAGE),
    "permute": (lambda x: x.permute(0, 2, 3, 1), IMAGE),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), IMAGE),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), IMAGE),
    "reshape": (lambda x: (x + x).reshape(4, -1), IMAGE),
    "shape": (lambda x: (x + x).reshape(x.shape[0], -1), IMAGE),
    "size": (lambda x: (x + x).reshape(x.size(0), -1), IMAGE),
    "squeeze": (lambda x: x.squeeze(1), (4, 1, 6)),
    "squeeze_": (lambda x: (x + 1).squeeze_(1), (4, 1, 6)),
    "transpose": (lambda x: x.transpose(1, 2), IMAGE),
    "unsqueeze": (lambda x: x.unsqueeze(1), ROW),
    "unsqueeze_": (lambda x: (x + 1).unsqueeze_(1), ROW),
    "view": (lambda x: x.view(4, -1), IMAGE),
}
MODULES = {
    nn.Hardsigmoid: (nn.Hardsigmoid(), IMAGE),
    nn.Sigmoid: (nn.Sigmoid(), IMAGE),
    nn.Tanh: (nn.Tanh(), IMAGE),
    nn.Softmax: (nn.Softmax(1), IMAGE),
    nn.ELU: (nn.ELU(0.5), IMAGE),
    nn.LeakyReLU: (nn.LeakyReLU(0.2), IMAGE),
    nn.Hardswish: (nn.Hardswish(), IMAGE),
    nn.InstanceNorm1d: (nn.InstanceNorm1d(16, affine=True), ROW),
    nn.InstanceNorm2d: (nn.InstanceNorm2d(16, affine=True), IMAGE),
    nn.InstanceNorm3d: (nn.InstanceNorm3d(16, affine=True), VOLUME),
    nn.LayerNorm: (nn.LayerNorm(6), IMAGE),
    nn.Dropout: (nn.Dropout(0.3), IMAGE),
    nn.PReLU: (_prelu(), IMAGE),
    nn.BatchNorm2d: (nn.BatchNorm2d(16), IMAGE),
    nn.BatchNorm3d: (nn.BatchNorm3d(16), VOLUME),
    nni.BNReLU2d: (nn.Sequential(nn.BatchNorm2d(16), nn.ReLU()), IMAGE),
    nni.BNReLU3d: (nn.Sequential(nn.BatchNorm3d(16), nn.ReLU()), VOLUME),
    nn.AdaptiveAvgPool1d: (nn.AdaptiveAvgPool1d(2), ROW),
    nn.AdaptiveAvgPool2d: (nn.AdaptiveAvgPool2d(2), IMAGE),
    nn.AdaptiveAvgPool3d: (nn.AdaptiveAvgPool3d(2), VOLUME),
    nn.AvgPool1d: (nn.AvgPool1d(2), ROW),
    nn.AvgPool2d: (nn.AvgPool2d(2), IMAGE),
    nn.AvgPool3d: (nn.AvgPool3d(2), VOLUME),
    nn.Hardtanh: (nn.Hardtanh(-0.7, 0.7), IMAGE),
    nn.MaxPool1d: (nn.MaxPool1d(2), ROW),
    nn.MaxPool2d: (nn.MaxPool2d(2), IMAGE),
    nn.MaxPool3d: (nn.MaxPool3d(2), VOLUME),
    nn.ReLU: (nn.ReLU(), IMAGE),
    nn.ReLU6: (nn.ReLU6(), IMAGE),
    nn.ChannelShuffle: (nn.Sequential(nn.BatchNorm2d(16), nn.ChannelShuffle(2)), IMAGE),
    nn.Identity: (nn.Identity(), IMAGE),
    nn.PixelShuffle: (nn.PixelShuffle(2), IMAGE),
    nn.PixelUnshuffle: (nn.PixelUnshuffle(2), IMAGE),
}
# No tensor has such a method; a resized tensor may hold anything.
NO_CASE = {"hardsigmoid", "hardsigmoid_", "resize_"}
# torch lowers them to functions that its quantized tensors do not have.
NOT_RUN = {"x.sigmoid_", "x.tanh_"}
# Float layers whose reference modules the lowering names.
LAYERS = {
    nnqr.Linear: (nn.Linear(6, 5), IMAGE),
    nnqr.Conv1d: (nn.Conv1d(16, 8, 3), ROW),
    nnqr.Conv2d: (nn.Conv2d(16, 8, 3), IMAGE),
    nnqr.Conv3d: (nn.Conv3d(16, 8, 3), VOLUME),
    nnqr.ConvTranspose1d: (nn.ConvTranspose1d(16, 8, 3), ROW),
    nnqr.ConvTranspose2d: (nn.ConvTranspose2d(16, 8, 3), IMAGE),
    nnqr.ConvTranspose3d: (nn.ConvTranspose3d(16, 8, 3), VOLUME),
}
BINARY = {
    operator.add: (lambda x: x + x.flip(0), IMAGE),
    torch.add: (lambda x: torch.add(x, x.flip(0)), IMAGE),
    operator.mul: (lambda x: x * x.flip(0), IMAGE),
    torch.mul: (lambda x: torch.mul(x, x.flip(0)), IMAGE),
    operator.matmul: (lambda x: x @ x, IMAGE),
    torch.matmul: (lambda x: torch.matmul(x, x), IMAGE),
}
ALL = {
    **{f"{op.__module__}.{op.__name__}": case for op, case in FUNCTIONS.items()},
    **{f"{op.__name__} of two": case for op, case in BINARY.items()},
    **{f"x.{name}": case for name, case in METHODS.items()},
    **{kind.__name__: case for kind, case in MODULES.items()},
    **{f"nn.{kind.__name__}": case for kind, case in LAYERS.items()},
}


class OneOperation(nn.Module):
    def __init__(self, operation):
        super().__init__()
        if isinstance(operation, nn.Module):
            self.operation = operation
        else:
            self.__dict__["operation"] = operation

    def forward(self, x):
        return self.operation(x)


def _data(shape):
    torch.manual_seed(9)
    return torch.randn(*shape)


def test_every_operation_that_torch_lowers_has_a_case():
    assert len(_listed("func_list")) > 30
    assert _listed("func_list") == FUNCTIONS.keys()
    assert _listed("method_list") == METHODS.keys() | NO_CASE
    layers = {kind for kind in _listed("module_type_list") if kind.__module__.startswith("torch.ao.nn.quantized")}
    assert _listed("module_type_list") - layers == MODULES.keys()
    lowered = lower.STATIC_LOWER_MODULE_MAP.keys() | layers
    assert lowered == LAYERS.keys()
    assert lower.QBIN_OP_MAPPING.keys() | lower.QBIN_RELU_OP_MAPPING.keys() == BINARY.keys()


REFERENCES = ("x.tanh_", "PReLU", "AvgPool2d", "BNReLU2d", "matmul of two", *(n for n in ALL if n.startswith("nn.")))


@pytest.mark.parametrize(("name", "reference"), [(name, False) for name in ALL] + [(name, True) for name in REFERENCES])
def test_an_operation_is_float_again_and_rounds_as_int8(name, reference):
    operation, shape = ALL[name]
    model, x = OneOperation(operation).eval(), _data(shape)
    int8 = converted(model, x, reference=reference)
    rebuilt = dequantize_model(int8)
    if not name.startswith(("nn.", "PReLU")):  # a layer's weight was rounded
        assert torch.equal(rebuilt(x), model(x))
    imitation, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    if name in NOT_RUN and not reference:
        return
    found = node_agreement(int8, imitation, x)
    assert found, "nothing is quantized"
    for node, agreement in found.items():
        assert agreement.share >= 0.99, (node, agreement)
        assert agreement.max_steps < 1.01, (node, agreement)
    agreed = (imitation(x) == floats(int8(x))).float().mean()
    assert agreed >= 0.99
