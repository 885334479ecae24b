"""RNNs, attention, embeddings, norms and float parts: their weights are compared, and what cannot be is said."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.ao.nn.quantized as nnq
import torch.ao.quantization as tq
from torch import nn

import qdeq
from tests.helpers.models import quantize
from tests.sources.eager.classes.test_attention import converted


class Recurrent(nn.Module):
    """An embedding, every kind of RNN that torch quantizes dynamically, and a LayerNorm and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 16, 2, bidirectional=True)
        self.gru = nn.GRU(32, 16)
        self.cell = nn.LSTMCell(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, _ = self.gru(self.lstm(self.embedding(x))[0])
        return self.head(self.norm(self.cell(x[0])[0]))


def dynamic(dtype: torch.dtype = torch.qint8) -> nn.Module:
    torch.manual_seed(0)
    model = Recurrent().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # heavy-tailed: no initialisation gives that
            parameter.copy_(torch.randn_like(parameter) ** 3 * 0.05)
    return tq.quantize_dynamic(model, {nn.LSTM, nn.GRU, nn.LSTMCell, nn.Linear}, dtype=dtype)


WEIGHTS = ["lstm.weight_ih_l0", "lstm.weight_hh_l1_reverse", "gru.weight_hh_l0", "cell.weight_ih"]


def first_fault(int8, model, data=None):
    explanation = qdeq.explain(int8, model, data)
    assert not explanation.agrees
    return explanation.findings[0]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_a_correct_rebuild_agrees(dtype):
    int8 = dynamic(dtype)
    explanation = qdeq.explain(int8, qdeq.dequantize_model(int8))
    assert explanation.agrees, str(explanation)
    if dtype == torch.qint8:
        assert set(WEIGHTS) <= {item.module for item in explanation.findings}
        assert "bit for bit" in explanation.verdict


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("weight_not_copied", lambda w: w.uniform_(-0.25, 0.25)),  # 1 / sqrt(hidden size)
        ("scale_wrong", lambda w: w.mul_(1.5)),
        ("not_finite", lambda w: w.fill_(float("nan"))),
        ("weight_altered", lambda w: w.add_(0.3 * w.std() * torch.randn_like(w))),
    ],
)
def test_a_wrong_weight_of_an_rnn_is_named(name, kind, change):
    int8 = dynamic()
    model = qdeq.dequantize_model(int8)
    with torch.no_grad():
        change(model.get_parameter(name))
    first = first_fault(int8, model)
    assert (first.module, first.kind) == (name, kind)


def test_swapped_weights_of_an_rnn_are_named():
    int8 = dynamic()
    model = qdeq.dequantize_model(int8)
    with torch.no_grad():
        a, b = model.lstm.weight_hh_l0, model.lstm.weight_hh_l0_reverse
        a[:], b[:] = b.clone(), a.clone()
    kinds = {item.module: item.kind for item in qdeq.explain(int8, model).findings}
    assert kinds["lstm.weight_hh_l0"] == kinds["lstm.weight_hh_l0_reverse"] == "weights_swapped"


@pytest.mark.parametrize(
    ("name", "module", "kind"),
    [
        ("gru.bias_ih_l0", "gru.weight_ih_l0", "bias_zeroed"),
        ("cell.bias_hh", "cell.weight_hh", "bias_zeroed"),
        ("norm.weight", "norm", "parameter_wrong"),
        ("embedding.weight", "embedding", "parameter_wrong"),
    ],
)
def test_a_wrong_bias_or_float_parameter_is_named(name, module, kind):
    int8 = dynamic()
    model = qdeq.dequantize_model(int8)
    with torch.no_grad():
        model.get_parameter(name).zero_()
    first = first_fault(int8, model)
    assert (first.module, first.kind) == (module, kind)


def test_a_wrong_float16_weight_is_named():
    int8 = dynamic(torch.float16)
    model = qdeq.dequantize_model(int8)
    with torch.no_grad():
        model.lstm.weight_ih_l0[0, 0] += 1
    first = first_fault(int8, model)
    assert (first.module, first.kind) == ("lstm", "parameter_wrong")


@pytest.mark.parametrize("name", ["lstm.weight_hh_l0", "norm.weight", "gru.bias_ih_l0"])
def test_repairing_it_leaves_what_the_right_weights_leave(name):
    int8 = dynamic()
    right, model = qdeq.dequantize_model(int8), qdeq.dequantize_model(int8)
    with torch.no_grad():
        model.get_parameter(name).mul_(-30)
        data = torch.randint(20, (12, 9))
        wanted = int8(data)
        left, before = ((other(data) - wanted).square().sum() for other in (right, model))
    assert first_fault(int8, model, data).repair == pytest.approx(float(1 - left / before), rel=1e-4)


def test_a_checkpoint_of_an_rnn_is_compared(tmp_path):
    int8 = dynamic()
    model = qdeq.dequantize_model(int8)
    torch.save(int8.state_dict(), tmp_path / "int8.pt")
    assert qdeq.explain(tmp_path / "int8.pt", model).agrees
    assert qdeq.explain(tmp_path / "int8.pt", model.state_dict()).agrees
    with torch.no_grad():
        model.lstm.weight_ih_l1.mul_(2)
    for side in (model, model.state_dict()):
        first = first_fault(tmp_path / "int8.pt", side)
        assert (first.module, first.kind) == ("lstm.weight_ih_l1", "scale_wrong")


def test_a_state_dict_that_hides_its_weights_does_not_agree():
    int8 = dynamic()
    explanation = qdeq.explain(int8.state_dict(), qdeq.dequantize_model(int8))
    assert not explanation.agrees
    unread = {item.module for item in explanation.findings if item.kind == "not_compared"}
    assert "gru._all_weight_values.0.param" in unread


def attention() -> nn.Module:
    torch.manual_seed(0)
    return converted(nn.MultiheadAttention(16, 2), "fbgemm", [torch.randn(5, 3, 16) for _ in range(3)])


def test_attention_is_compared_as_the_float_class_holds_it():
    int8 = attention()
    model = qdeq.dequantize_model(int8)
    explanation = qdeq.explain(int8, model)
    assert explanation.agrees, str(explanation)
    assert {item.module for item in explanation.findings} == {"attention.in_proj_weight", "attention.out_proj"}
    with torch.no_grad():
        model.attention.in_proj_weight[16:32] *= 2
    first = first_fault(int8, model)
    assert (first.module, first.kind) == ("attention.in_proj_weight", "scale_wrong")


def test_quantized_norms_and_embeddings_are_compared():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.EmbeddingBag(30, 8, mode="sum")
            self.quant, self.dequant = tq.QuantStub(), tq.DeQuantStub()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dequant(self.head(self.norm(self.quant(self.embedding(x)))))

    torch.manual_seed(0)
    model = Model()
    nn.init.normal_(model.norm.weight)
    model.embedding.qconfig = tq.float_qparams_weight_only_qconfig
    for part in (model.norm, model.head, model.quant):
        part.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(model.eval())
    prepared(torch.randint(30, (6, 5)))
    int8 = tq.convert(prepared)
    rebuilt = qdeq.dequantize_model(int8)
    assert isinstance(int8.norm, nnq.LayerNorm)
    assert isinstance(int8.embedding, nnq.EmbeddingBag)
    assert qdeq.explain(int8, rebuilt).agrees
    for module, kind in (("norm", "parameter_wrong"), ("embedding", "scale_wrong")):
        wrong = copy.deepcopy(rebuilt)
        with torch.no_grad():
            wrong.get_submodule(module).weight.mul_(3)
        first = first_fault(int8, wrong)
        assert (first.module, first.kind) == (module, kind)


def test_a_class_that_nobody_knows_is_not_compared():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)

    int8 = quantize(nn.Sequential(tq.QuantStub(), nn.Linear(4, 4), tq.DeQuantStub()), torch.randn(8, 4))
    model = qdeq.dequantize_model(int8)
    int8.append(Own())
    first = first_fault(int8, model.append(nn.Identity()))
    assert (first.module, first.kind) == ("3", "not_compared")
    assert "Own" in first.message


def test_a_float_tensor_without_a_counterpart_is_not_compared():
    int8 = dynamic()
    model = qdeq.dequantize_model(int8)
    model.norm = nn.Identity()
    explanation = qdeq.explain(int8, model)
    assert {item.module for item in explanation.findings if item.kind == "not_compared"} == {"norm.weight", "norm.bias"}
