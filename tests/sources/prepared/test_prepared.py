"""Prepared and QAT models: the weights that were trained, or the rounded ones they were evaluated with."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.qat as nnqat
import torch.ao.nn.qat.dynamic as nnqatd
import torch.ao.quantization as tq
from torch import nn
from torch.ao.quantization import quantize_fx
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from qdeq import QdeqError, dequantize_model
from qdeq.sources.eager.recognise import is_observing

PER_CHANNEL = tq.get_default_qat_qconfig("fbgemm")
PER_TENSOR = tq.get_default_qat_qconfig("qnnpack")
TABLE = tq.default_embedding_qat_qconfig
QCONFIGS = {"per channel": PER_CHANNEL, "per tensor": PER_TENSOR}


def _started(module):
    """A module whose bias is known: torch leaves that of some qat classes uninitialised."""
    if module.bias is not None:
        nn.init.uniform_(module.bias, -0.5, 0.5)
    return module


def _conv(kind, size, qconfig, bias):
    module = kind(4, 6, 3, padding=1, groups=2, bias=bias, qconfig=qconfig)
    return _started(module), torch.randn(5, 4, *[7] * size)


def _linear(kind, qconfig, bias):
    if kind is nnqatd.Linear:
        qconfig = tq.default_dynamic_qat_qconfig  # it takes no other
    return _started(kind(6, 4, bias=bias, qconfig=qconfig)), torch.randn(8, 6)


CONVS = {
    getattr(home, f"{name}{size}d"): size
    for home, names in ((nnqat, ("Conv",)), (nniqat, ("ConvReLU", "ConvBn", "ConvBnReLU")))
    for name in names
    for size in (1, 2, 3)
}
LINEARS = (nnqat.Linear, nnqatd.Linear, nniqat.LinearReLU, nniqat.LinearBn1d)


def trained(module, data, *, freeze=False):
    """A module after a few steps, with batch norm statistics and weights that are far from the identity."""
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for step in range(4):
        optimizer.zero_grad()
        module(data + 0.1 * step).square().mean().backward()
        optimizer.step()
    if hasattr(module, "bn"):
        with torch.no_grad():
            module.bn.weight.uniform_(0.5, 2)
            module.bn.bias.uniform_(-1, 1)
            module(data)
    return module.eval()


def evaluated(module, data, weights):
    """The source's own output with fake quantization off, or with that of the weights alone."""
    copied = copy.deepcopy(module)
    for name, part in copied.named_modules():
        if isinstance(part, tq.FakeQuantizeBase):
            part.disable_observer()
            part.enable_fake_quant(weights == "rounded" and name.endswith("weight_fake_quant"))
    with torch.no_grad():
        return copied(data)


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int32)


def assert_bits(a, b):
    assert torch.equal(bits(a), bits(b))


def digest(module):
    return {name: bits(v.float()) for name, v in module.state_dict().items()}


def cases():
    for kind, size in CONVS.items():
        yield pytest.param(
            lambda q, b, kind=kind, size=size: _conv(kind, size, q, b),
            id=f"{kind.__module__.split('.')[3]}.{kind.__name__}",
        )
    for kind in LINEARS:
        yield pytest.param(
            lambda q, b, kind=kind: _linear(kind, q, b), id=f"{kind.__module__.split('.')[4]}.{kind.__name__}"
        )


@pytest.mark.parametrize("scheme", QCONFIGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("make", list(cases()))
def test_every_class(make, bias, scheme):
    torch.manual_seed(0)
    module, data = make(QCONFIGS[scheme], bias)
    module = trained(module, data)
    model = nn.Sequential(module, nn.Identity(), nn.Identity())
    norm, before = getattr(module, "bn", None), digest(model)
    for weights in ("master", "rounded"):
        for fold in (True, False):
            result = dequantize_model(model, weights=weights, fold_bn=fold)
            assert not any(is_observing(part) for part in result.modules())
            wanted, shift = expected_weight(module, norm, weights, fold)
            assert_bits(result[0].weight, wanted)
            assert (result[0].bias is None) == (shift is None)
            if shift is not None:
                assert_bits(result[0].bias, shift)
            torch.testing.assert_close(result(data), evaluated(model, data, weights), atol=1e-5, rtol=1e-5)
            if norm is not None and not fold:
                assert type(result[1]) is type(norm)
                assert_bits(result[1].running_var, norm.running_var)
    after = digest(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def expected_weight(module, norm, weights, fold):
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    quantize = copy.deepcopy(module.weight_fake_quant)
    quantize.disable_observer()
    quantize.enable_fake_quant()
    with torch.no_grad():
        if norm is None:
            return (weight if weights == "master" else quantize(weight)), bias
        fuse = fuse_linear_bn_weights if weight.dim() == 2 else fuse_conv_bn_weights
        master, shift = fuse(weight, bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape([-1] + [1] * (weight.dim() - 1))
        if fold:
            return (master if weights == "master" else quantize(weight * factor)), shift
        return (weight if weights == "master" else quantize(weight * factor) / factor), bias


@pytest.mark.parametrize("bag", [False, True])
def test_embeddings(bag):
    torch.manual_seed(0)
    kind = nnqat.EmbeddingBag if bag else nnqat.Embedding
    module = kind(20, 8, **({"mode": "sum"} if bag else {}), qconfig=TABLE)
    module(torch.arange(20).reshape(4, 5))
    assert_bits(dequantize_model(nn.Sequential(module))[0].weight, module.weight)
    quantize = copy.deepcopy(module.weight_fake_quant)
    quantize.disable_observer()
    rounded = dequantize_model(nn.Sequential(module), weights="rounded")[0]
    assert type(rounded) is (nn.EmbeddingBag if bag else nn.Embedding)
    assert_bits(rounded.weight, quantize(module.weight))
    assert not torch.equal(rounded.weight, module.weight)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.add = nn.quantized.FloatFunctional()
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.add.add(x, self.bn2(self.conv2(x)))
        return self.dequant(self.fc(x.mean((2, 3))))


def eager_qat(qconfig, data):
    net = tq.fuse_modules_qat(Net().train(), [["conv1", "bn1", "relu1"], ["conv2", "bn2"]])
    net.qconfig = qconfig
    return trained(tq.prepare_qat(net), data)


@pytest.mark.parametrize("scheme", QCONFIGS)
@pytest.mark.parametrize("weights", ["master", "rounded"])
@pytest.mark.parametrize("form", ["eager", "fx"])
def test_a_network(form, weights, scheme):
    torch.manual_seed(0)
    data = torch.randn(6, 3, 9, 9)
    if form == "eager":
        net = eager_qat(QCONFIGS[scheme], data)
    else:
        mapping = tq.QConfigMapping().set_global(QCONFIGS[scheme])
        plain = Net().train()
        plain.quant, plain.dequant = nn.Identity(), nn.Identity()
        net = trained(quantize_fx.prepare_qat_fx(plain, mapping, (data,)), data)
    for fold in (True, False):
        before = digest(net)
        result, report = dequantize_model(net, weights=weights, fold_bn=fold, return_report=True)
        assert all(torch.equal(before[k], v) for k, v in digest(net).items())
        assert not any(is_observing(part) or hasattr(part, "qconfig") for part in result.modules())
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in result.modules())
        torch.testing.assert_close(result(data), evaluated(net, data, weights), atol=1e-5, rtol=1e-5)
        assert {"conv1.weight", "conv2.bias", "fc.weight"} <= result.state_dict().keys()
        copy.deepcopy(result).train()(data).sum().backward()
        assert weights in str(report)


def test_eager_batch_norms_go_back_where_they_were():
    torch.manual_seed(0)
    data = torch.randn(6, 3, 9, 9)
    net = eager_qat(PER_CHANNEL, data)
    net.conv1.freeze_bn_stats()
    net.train()
    result = dequantize_model(net, fold_bn=False)
    assert result.state_dict().keys() == Net().state_dict().keys() - {"add.weight"}
    Net().load_state_dict(result.state_dict())
    assert result.bn2.training
    assert not result.bn1.training  # frozen inside a network that trains


def test_before_training_it_is_the_float_model():
    """Prepared for post-training quantization: nothing but observers came in."""
    torch.manual_seed(0)
    data, net = torch.randn(6, 3, 9, 9), Net().eval()
    for fuse in (False, True):
        ready = tq.fuse_modules(net, [["conv1", "bn1", "relu1"], ["conv2", "bn2"]]) if fuse else copy.deepcopy(net)
        ready.qconfig = tq.get_default_qconfig("fbgemm")
        prepared = tq.prepare(ready)
        prepared(data)
        result = dequantize_model(prepared)
        torch.testing.assert_close(result(data), net(data), atol=1e-5, rtol=1e-5)
        assert "conv1.weight" in result.state_dict()
        assert type(result.relu1) is nn.ReLU
        if fuse:
            with pytest.raises(QdeqError, match=r'conv1\.0\.weight: expected a fake quantization.*weights="master"'):
                dequantize_model(prepared, weights="rounded")


def test_what_has_never_run_cannot_be_rounded():
    net = tq.fuse_modules_qat(Net().train(), [["conv1", "bn1", "relu1"], ["conv2", "bn2"]])
    net.qconfig = PER_CHANNEL
    prepared = tq.prepare_qat(net)
    dequantize_model(prepared)
    with pytest.raises(QdeqError, match=r"conv1\.weight: expected .* got one that never ran\. Run the model on data"):
        dequantize_model(prepared, weights="rounded")


def test_a_channel_whose_batch_norm_is_zero():
    torch.manual_seed(0)
    module, data = _conv(nniqat.ConvBn2d, 2, PER_CHANNEL, True)
    module = trained(module, data)
    with torch.no_grad():
        module.bn.weight[1] = 0
    result = dequantize_model(nn.Sequential(module, nn.Identity()), weights="rounded", fold_bn=False)
    assert_bits(result[0].weight[1], module.weight[1])
    assert torch.isfinite(result(data)).all()


def test_bad_arguments():
    torch.manual_seed(0)
    prepared = nn.Sequential(nnqat.Linear(3, 3, qconfig=PER_CHANNEL))
    with pytest.raises(QdeqError, match='weights: expected "master" or "rounded", got \'masters\''):
        dequantize_model(prepared, weights="masters")
    with pytest.raises(QdeqError, match='activations: expected "drop" for a prepared model'):
        dequantize_model(prepared, activations="clamp")
    observed = tq.prepare(_one_linear())
    observed(torch.randn(2, 3))
    half = nn.Sequential(*prepared, tq.convert(observed)[0])
    with pytest.raises(QdeqError, match="a half converted model"):
        dequantize_model(half)


def _one_linear():
    net = nn.Sequential(nn.Linear(3, 3)).eval()
    net.qconfig = tq.get_default_qconfig("fbgemm")
    return net


def test_lstm_and_attention_inside():
    torch.manual_seed(0)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.attention = nn.LSTM(4, 8), nn.MultiheadAttention(8, 2)

        def forward(self, x):
            y = self.lstm(x)[0]
            return self.attention(y, y, y)[0]

    net, data = Both().eval(), torch.randn(5, 3, 4)
    ready = copy.deepcopy(net)
    ready.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(ready)
    prepared(data)
    result = dequantize_model(prepared)
    assert type(result.lstm) is nn.LSTM
    assert type(result.attention) is nn.MultiheadAttention
    for name, value in net.state_dict().items():
        assert_bits(result.state_dict()[name], value)
    torch.testing.assert_close(result(data), net(data), atol=1e-5, rtol=1e-5)
