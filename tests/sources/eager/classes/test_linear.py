from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.intrinsic.quantized.dynamic as nniqd
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
import torch.ao.nn.sparse.quantized as nnsq
import torch.ao.nn.sparse.quantized.dynamic as nnsqd
from torch import nn
from torch.nn import functional as F

from qdeq.layers import fused
from tests.helpers.models import assert_same_bits, engine
from tests.sources.eager.classes.helpers import (
    ENGINES,
    ON_ENGINES,
    SCHEMES,
    build,
    check_weight_and_bias,
    random_weight,
    rebuilt_and_report,
)

KINDS = [
    (nnq.Linear, nn.Linear, ()),
    (nniq.LinearReLU, fused.LinearReLU, ()),
    (nniq.LinearLeakyReLU, fused.LinearLeakyReLU, (0.125,)),
    (nniq.LinearTanh, fused.LinearTanh, ()),
    (nnqd.Linear, nn.Linear, ()),
    (nniqd.LinearReLU, fused.LinearReLU, ()),
]
ACTIVATIONS = {
    fused.LinearReLU: F.relu,
    fused.LinearLeakyReLU: lambda x: F.leaky_relu(x, 0.125),
    fused.LinearTanh: torch.tanh,
}


@ON_ENGINES
@SCHEMES
@pytest.mark.parametrize(("kind", "target", "extra"), KINDS, ids=[f"{k.__module__}.{k.__name__}" for k, _, _ in KINDS])
def test_weight_bias_and_activation(kind, target, extra, per_channel, backend):
    torch.manual_seed(21)
    for bias in (True, False):
        module = build(kind, 33, 7, *extra, backend=backend, bias=bias, per_channel=per_channel)
        rebuilt, report = rebuilt_and_report(module)
        assert type(rebuilt) is target
        assert (rebuilt.in_features, rebuilt.out_features) == (33, 7)
        check_weight_and_bias(module, rebuilt, backend=backend)
        assert ("0" in report.activation_qparams) == (".dynamic" not in kind.__module__)
        x = torch.randn(5, 33)
        activation = ACTIVATIONS.get(target, lambda y: y)
        assert_same_bits(rebuilt(x), activation(F.linear(x, rebuilt.weight, rebuilt.bias)))
        if bias is False and backend == "qnnpack":
            assert "bias is all zeros, as qnnpack" in report.notes["0"][0]


@pytest.mark.skipif("onednn" not in ENGINES, reason="these ops exist for onednn only")
@pytest.mark.parametrize(
    ("kind", "extra", "step", "qparams"),
    [(nniq.LinearLeakyReLU, (0.125,), 0.05, (0.25, 64)), (nniq.LinearTanh, (), 0.005, (2 / 256, 128))],
    ids=["LeakyReLU", "Tanh"],
)
def test_fused_layers_of_onednn_compute_what_torch_computes(kind, extra, step, qparams):
    torch.manual_seed(24)
    module = build(kind, 33, 7, *extra, backend="onednn")
    module.scale, module.zero_point = qparams
    rebuilt, _ = rebuilt_and_report(module)
    # 7 bits, so that no CPU saturates.
    x = torch.quantize_per_tensor(torch.randn(64, 33).clamp(-3, 3) * 20 * step, step, 64, torch.quint8)
    assert x.int_repr().max() <= 127
    with engine("onednn"):
        expected = module(x).int_repr().int()
    actual = torch.quantize_per_tensor(rebuilt(x.dequantize()), *qparams, torch.quint8).int_repr().int()
    assert (actual - expected).abs().max() <= 1
    assert (actual == expected).float().mean() > 0.99
    assert expected.unique().numel() > 20, "clamped to a few values: it shows nothing"


@pytest.mark.parametrize("backend", [name for name in ENGINES if name in ("fbgemm", "x86")])
@pytest.mark.parametrize("kind", [nnqd.Linear, nniqd.LinearReLU])
@pytest.mark.parametrize("bias", [True, False])
def test_float16(kind, bias, backend):
    torch.manual_seed(22)
    with engine(backend):
        module = kind(33, 7, dtype=torch.float16)
        weight = torch.randn(7, 33) * 100
        weight[0, 0] = 1e6
        weight[0, 1] = 1e-7
        module.set_weight_bias(weight, torch.randn(7) if bias else None)
    rebuilt, report = rebuilt_and_report(module)
    check_weight_and_bias(module, rebuilt, backend=backend)
    assert rebuilt.weight[0, 0] == 65504, "torch saturates"
    assert_same_bits(rebuilt.weight, weight.clamp(-65504, 65504).half().float())
    assert report.entries[0].dtype == "float16"


@pytest.mark.parametrize("kind", [nnsq.Linear, nnsqd.Linear])
@pytest.mark.parametrize("bias", [True, False])
def test_block_sparse(kind, bias):
    torch.manual_seed(23)
    with engine("fbgemm"):
        module = kind(16, 8, 1, 4)
        weight = random_weight((8, 16))
        integers = weight.int_repr()
        integers[:, 4:8] = 0
        weight = torch._make_per_tensor_quantized_tensor(integers, weight.q_scale(), 0)
        module.set_weight_bias(weight, torch.randn(8) if bias else None, 1, 4)
    rebuilt, report = rebuilt_and_report(module)
    check_weight_and_bias(module, rebuilt, backend="fbgemm")
    assert (rebuilt.weight[:, 4:8] == 0).all()
    assert ("0" in report.activation_qparams) == (kind is nnsq.Linear)
    if kind is nnsq.Linear:
        module.scale, module.zero_point = 0.5, 128
        x = torch.quantize_per_tensor(torch.rand(5, 16), 1 / 127, 0, torch.quint8)
        actual = torch.quantize_per_tensor(rebuilt(x.dequantize()), 0.5, 128, torch.quint8).int_repr().int()
        assert (actual - module(x).int_repr().int()).abs().max() <= 1


@pytest.mark.skipif("qnnpack" not in ENGINES, reason="this torch has no qnnpack")
@pytest.mark.parametrize("kind", ["torch.ao.nn.sparse.quantized", "torch.ao.nn.sparse.quantized.dynamic"])
def test_block_sparse_on_qnnpack(kind):
    """In a process of its own: some calls on qnnpack's sparse weights crash in torch."""
    code = f"""
import importlib, torch
from torch import nn
from qdeq import dequantize_model
torch.backends.quantized.engine = "qnnpack"
module = importlib.import_module({kind!r}).Linear(16, 8, 1, 4)
weight = torch.quantize_per_tensor(torch.randn(8, 16), 0.02, 0, torch.qint8)
module.set_weight_bias(weight, torch.arange(8.0), 1, 4)
rebuilt = dequantize_model(nn.Sequential(module))[0]
assert torch.equal(rebuilt.weight, weight.dequantize())
assert torch.equal(rebuilt.bias, torch.arange(8.0))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_the_old_names_are_the_same_classes():
    import torch.nn.quantized as old
    import torch.nn.quantized.dynamic as old_dynamic

    assert old.Linear is nnq.Linear
    assert old_dynamic.Linear is nnqd.Linear
    rebuilt, _ = rebuilt_and_report(build(old.Linear, 3, 2, backend="fbgemm"))
    assert type(rebuilt) is nn.Linear
