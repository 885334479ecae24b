"""What of the data are arguments and what are labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import qdeq
from qdeq.diagnosis.measure.data import batches
from tools.models import tq

X, Y = torch.randn(6, 4), torch.arange(6) % 3
IDS = torch.randint(0, 9, (6, 5))
STATE = (torch.zeros(2, 6, 8), torch.zeros(2, 6, 8))


class One(nn.Module):
    def forward(self, x):
        return x


class Two(nn.Module):
    def forward(self, ids, mask):
        return ids


class Optional(nn.Module):
    def forward(self, input_ids=None, attention_mask=None, labels=None):
        return input_ids


class Any(nn.Module):
    def forward(self, *args, **kwargs):
        return args[0]


@pytest.mark.parametrize(
    ("model", "data", "args", "kwargs", "labels"),
    [
        (One(), X, (X,), {}, None),
        (One(), (X, Y), (X,), {}, Y),
        (One(), [X, Y], (X,), {}, Y),
        (One(), [X, X], (X,), {}, None),  # two batches
        (One(), (X, torch.rand(6)), (X,), {}, None),  # targets of a regression
        (One(), {"x": X, "labels": Y}, (), {"x": X}, Y),
        (One(), {"images": X, "y": Y}, (X,), {}, Y),
        (One(), {"arr_0": X, "arr_1": Y}, (X,), {}, Y),
        (One(), [{"x": X, "target": Y}], (), {"x": X}, Y),
        (One(), (IDS, Y.int()), (IDS,), {}, Y),
        (Two(), (IDS, Y), (IDS, Y), {}, None),  # both are required
        (Two(), [IDS, X], (IDS, X), {}, None),
        (Two(), ((IDS, X), Y), ((IDS, X), Y), {}, None),
        (Two(), (IDS, X, Y), (IDS, X), {}, Y),
        (Two(), [(IDS, STATE)], (IDS, STATE), {}, None),
        (Optional(), (IDS, Y), (IDS,), {}, Y),
        (Optional(), (IDS, IDS), (IDS, IDS), {}, None),
        (Optional(), ((IDS, IDS), Y), (IDS, IDS), {}, Y),
        (Optional(), ({"input_ids": IDS}, Y), (), {"input_ids": IDS}, Y),
        (Optional(), {"input_ids": IDS, "labels": Y}, (), {"input_ids": IDS}, Y),
        (Optional(), {"input_ids": IDS, "labels": IDS}, (), {"input_ids": IDS}, None),  # of words: no class of a sample
        (Any(), (IDS, X, Y), (IDS, X), {}, Y),
    ],
)
def test_arguments_and_labels(model, data, args, kwargs, labels):
    batch = next(iter(batches(data, model)))
    assert _same(batch.args, args)
    assert batch.kwargs.keys() == kwargs.keys()
    assert all(_same(batch.kwargs[name], kwargs[name]) for name in kwargs)
    assert (batch.labels is None) == (labels is None)
    assert labels is None or torch.equal(batch.labels, labels)
    assert len(batch) == 6


def _same(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b)


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        (One(), (X, Y[:5]), r"labels int64 \(6,\), got \(5,\) int64"),
        (One(), (X, IDS), r"labels int64 \(6,\), got \(6, 5\) int64"),
        (One(), {"x": X, "labels": Y[:2]}, r"labels int64 \(6,\), got \(2,\) int64"),
        (One(), (X, X, X), "expected 1 arguments for the forward, got 3"),
        (Two(), X, "expected 2 arguments for the forward, got 1"),
        (One(), {"x": X, "mask": X}, "expected inputs named x, got mask"),
        (One(), torch.utils.data.DataLoader([]), "at least one sample, got none"),
        (One(), torch.tensor(3.0), "batches of samples, got a scalar"),
    ],
)
def test_data_that_does_not_fit(model, data, words):
    with pytest.raises(qdeq.QdeqValueError, match=words):
        list(batches(data, model))


def test_states_in_tuples_are_not_cut():
    ids = torch.randint(0, 9, (100, 5))
    (batch,) = batches([(ids, (torch.zeros(2, 5, 8),))], Two())
    assert batch.args[0] is ids
    assert [len(part) for part in batches((ids, torch.zeros(100, 3)), Two())] == [64, 36]


class Words(nn.Module):
    """Tokens and a hidden state, as recurrent taggers have them; the form of the output is chosen."""

    def __init__(self, form):
        super().__init__()
        self.e, self.lstm, self.fc, self.form = nn.Embedding(30, 8), nn.LSTM(8, 8, 2), nn.Linear(8, 3), form

    def forward(self, ids, state):
        out, state = self.lstm(self.e(ids), state)
        return self.form(self.fc(out[-1]), state)


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    logits: torch.Tensor


FORMS = {
    "tuple": lambda logits, state: (logits, state),
    "dict": lambda logits, state: {"logits": logits, "state": state},
    "dataclass": lambda logits, state: Output(logits.sum(), logits),
}


@pytest.mark.parametrize("form", FORMS)
def test_models_of_two_inputs_and_any_output(form):
    torch.manual_seed(0)
    net = Words(FORMS[form]).eval()
    data = [(torch.randint(0, 30, (5, 2)), (torch.zeros(2, 2, 8), torch.zeros(2, 2, 8)))]
    int8 = tq.quantize_dynamic(net, {nn.LSTM, nn.Linear}, dtype=torch.qint8)
    explanation = qdeq.explain(int8, net, data, sensitivity=True)
    assert explanation.agrees, explanation.verdict
    assert {row.module for row in explanation.sensitivity} == {"lstm", "fc"}
    assert qdeq.compare(int8, net, data).outcome.sqnr_db > 20
    with torch.no_grad():
        net.fc.weight.zero_()
    assert qdeq.explain(int8, net, data).findings[0].module == "fc"


def test_labels_of_no_class_are_refused(small, images):
    for labels in (torch.full((96,), 10), torch.full((96,), -1)):
        with pytest.raises(qdeq.QdeqValueError, match="labels of the output's 10 classes"):
            qdeq.explain(small.int8, small.rebuilt, (images, labels))


def test_the_layer_that_refuses_is_named_with_both_shapes(small):
    with pytest.raises(
        qdeq.QdeqValueError, match=r"features\.0.*input was \(2, 1, 16, 16\).*weight is \(16, 3, 3, 3\)"
    ):
        qdeq.explain(small.int8, small.rebuilt, torch.zeros(2, 1, 16, 16))
