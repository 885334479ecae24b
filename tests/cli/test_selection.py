"""A selection is a file of its own: what holds of every opened file holds of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qdeq
from qdeq.cli.selection import Selection
from tests.files.torch_archive.conftest import build


@pytest.fixture
def source(tmp_path):
    torch.save(build("vgg").model.state_dict(), tmp_path / "model.pth")
    with qdeq.open(tmp_path / "model.pth") as opened:
        yield opened


def test_weights_and_descriptions_by_the_new_names(source):
    chosen = Selection(source, ["classifier.*"], ["classifier=head"])
    assert all(name.startswith("head.") for name in chosen)
    assert [entry.name for entry in chosen.describe()] == list(chosen)
    assert {entry.target for entry in chosen.report.entries} == set(chosen)
    assert {entry.source for entry in chosen.report.entries} <= {entry.source for entry in source.report.entries}
    assert "head.0" in chosen.activation_qparams
    assert chosen.files == source.files
    assert chosen.kind == "checkpoint"
    assert set(chosen.left_out) == {name for name in source if not name.startswith("classifier.")}


def test_into_a_model(source):
    target = nn.Sequential(nn.Linear(1, 1), nn.Linear(*reversed(source["classifier.0.weight"].shape)))
    chosen = Selection(source, ["classifier.0.*"], ["classifier.0=1"])
    qdeq.dequantize_state_dict(chosen, into=target, strict=False)
    assert torch.equal(target[1].weight, source["classifier.0.weight"].dequantize())


def test_doubts_follow_their_weight(source):
    source.doubtful["classifier.0.weight"] = "lost"
    assert Selection(source, ["features.*"], []).warnings == source.unchecked
    assert Selection(source, [], ["classifier=head"]).doubtful == {"head.0.weight": "lost"}


def test_outputs_follow_their_module(source):
    qparams = source.activation_qparams["classifier.0"]
    assert Selection(source, [], [], "classifier.0").activation_qparams == {"": qparams}
    assert Selection(source, ["classifier.0.*"], ["classifier.0="]).activation_qparams[""] == qparams
    chosen = Selection(source, ["classifier.0.weight"], ["classifier.0=head"])
    assert chosen.activation_qparams == {"quant": source.activation_qparams["quant"], "head": qparams}
    assert chosen.activations_left_out == [
        path for path in source.activation_qparams if path not in ("quant", "classifier.0")
    ]


def test_two_outputs_never_get_one_name(source):
    with pytest.raises(qdeq.QdeqValueError, match=r"'quant' for 'quant' and 'classifier\.0'"):
        Selection(source, [], ["classifier.0=quant"])
    # The layer whose name is taken over is left out, and its output with it.
    chosen = Selection(source, ["classifier.0.*"], ["classifier.0=features.0"])
    assert chosen.activation_qparams["features.0"] == source.activation_qparams["classifier.0"]


def test_closing_it_closes_the_file(source):
    with Selection(source, [], []) as chosen:
        name = next(iter(chosen))
        chosen.release()
        chosen[name]
    with pytest.raises(qdeq.QdeqValueError, match="a closed one"):
        source[name]
