"""Training checkpoints: the model in them is loaded, and what is no weight is left out and named."""

from __future__ import annotations

import argparse
import copy

import pytest
import torch
import torch.ao.quantization as tq
from torch import nn

import qdeq
from qdeq.state_dicts.records import BESIDE, COUNTER, OPTIMIZER
from tests.files.torch_archive import models
from tests.files.torch_archive.conftest import build
from tests.files.torch_archive.forms import check_equal, poisoned


@pytest.fixture(scope="module")
def vgg():
    case = build("vgg")
    case.model.eval()
    return case


def optimizer_state(kind=torch.optim.Adam):
    net = models.TinyVGG()
    optimizer = kind(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def below(front, state):
    return {front + key: value for key, value in state.items()}


FORMS = {
    "state_dict": lambda sd: {"epoch": 3, "state_dict": sd, "optimizer": optimizer_state(), "best_acc1": 3.5},
    "model_state_dict": lambda sd: {"model_state_dict": sd, "optimizer_state_dict": optimizer_state(torch.optim.SGD)},
    "model": lambda sd: {"model": sd, "epoch": torch.tensor(3), "rng": torch.get_rng_state()},
    "parallel in it": lambda sd: {"state_dict": below("module.", sd), "losses": [torch.tensor(0.5), torch.tensor(1)]},
    "Lightning": lambda sd: {
        "state_dict": {**below("model.", sd), "val_acc.total": torch.tensor(3), "val_loss": torch.tensor(0.5)},
        "optimizer_states": [optimizer_state()], "callbacks": {"best": {"score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 1}, "args": argparse.Namespace(a=1),
    },
    "averaged": lambda sd: {"n_averaged": torch.tensor(7), **below("module.", sd)},
    "averaged in it": lambda sd: {"ema": {"n_averaged": torch.tensor(7), **below("module.", sd)}, "amp": {"scale": 1.}},
    "compiled": lambda sd: below("_orig_mod.", sd),
}  # fmt: skip


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("source", ["dict", "archive", "legacy archive"])
def test_the_model_in_a_checkpoint_is_loaded(vgg, form, source, tmp_path):
    content = FORMS[form](vgg.model.state_dict())
    if source != "dict":
        zipped = source == "archive"
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
        content = qdeq.open(tmp_path / "c.pth")
        assert not [name for name in content if "optimizer" in name or "exp_avg" in name or "n_averaged" in name]
    target = poisoned(models.TinyVGG())
    found, report = qdeq.dequantize_state_dict(content, into=target)
    check_equal(dict(target.state_dict()), vgg.expected)
    check_equal(found, vgg.expected)
    assert "names begin otherwise" in report.notes[""][0]
    assert all("." not in path or path in dict(target.named_modules()) for path in report.activation_qparams)


def test_what_is_no_weight_is_named(vgg, tmp_path):
    torch.save(FORMS["Lightning"](vgg.model.state_dict()), tmp_path / "c.pth")
    with qdeq.open(tmp_path / "c.pth") as weights:
        assert weights.dropped["optimizer_states.0"] == OPTIMIZER
        assert weights.dropped["callbacks"] == BESIDE
        assert "state_dict.val_acc.total" in weights  # nothing but the float model tells
        _, report = qdeq.dequantize_state_dict(weights, into=models.TinyVGG())
    assert {"state_dict.val_acc.total", "state_dict.val_loss"} <= {item.source for item in report.dropped}
    averaged = qdeq.dequantize_state_dict(FORMS["averaged"](vgg.model.state_dict()))[1]
    assert [item.reason for item in averaged.dropped if item.source == "n_averaged"] == [COUNTER]


def test_everything_is_there_when_it_is_asked_for(vgg, tmp_path):
    content = FORMS["state_dict"](vgg.model.state_dict())
    torch.save({**content, "score": torch.tensor(0.5)}, tmp_path / "c.pth")
    with qdeq.open(tmp_path / "c.pth") as some, qdeq.open(tmp_path / "c.pth", everything=True) as everything:
        assert {"optimizer.state.0.exp_avg", "score"} <= set(everything) - set(some)
        assert set(some) < set(everything)


def test_scalars_of_a_model_stay(tmp_path):
    state = {"logit_scale": torch.tensor(4.6), "fc.weight": torch.ones(2, 2), "bn.num_batches_tracked": torch.tensor(1)}
    assert set(qdeq.dequantize_state_dict(state)[0]) == set(state)
    torch.save({"model": state, "epoch": torch.tensor(1)}, tmp_path / "c.pth")
    assert set(qdeq.open(tmp_path / "c.pth")) == {f"model.{name}" for name in state}


def test_a_whole_optimizer_beside_a_whole_model_is_no_weight(vgg, tmp_path):
    net = models.TinyVGG()
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    torch.save({"model": vgg.model, "optimizer": optimizer}, tmp_path / "c.pth")
    with qdeq.open(tmp_path / "c.pth") as weights:
        assert all(name.startswith("model.") for name in weights)
        assert weights.dropped["optimizer"] == OPTIMIZER


def test_a_file_of_an_optimizer_alone_is_named(tmp_path):
    torch.save(optimizer_state(), tmp_path / "c.pth")
    with pytest.raises(qdeq.QdeqValueError, match="a checkpoint that holds weights, got state of an optimizer"):
        qdeq.open(tmp_path / "c.pth")
    with pytest.raises(qdeq.QdeqValueError, match="at least one weight"):
        qdeq.dequantize_state_dict(optimizer_state())


def test_a_model_and_its_average_are_listed_and_prefix_chooses(vgg):
    sd = vgg.model.state_dict()
    other = build("vgg").model.state_dict()
    content = {"model": sd, "ema": {"n_averaged": torch.tensor(3), **below("module.", other)}}
    target = models.TinyVGG()
    for strict in (True, False):
        with pytest.raises(qdeq.QdeqValueError, match=r"sd: expected one part .* below 'ema.', 'model.'.*prefix="):
            qdeq.dequantize_state_dict(content, into=target, strict=strict)
    for prefix in ("model", "model.", "ema", "ema.module"):
        target = poisoned(models.TinyVGG())
        _, report = qdeq.dequantize_state_dict(content, into=target, prefix=prefix)
        check_equal(dict(target.state_dict()), vgg.expected)
        assert any(item.reason.startswith("not below") for item in report.dropped)
    check_equal(qdeq.dequantize_state_dict(content, prefix="model")[0], vgg.expected)


@pytest.mark.parametrize(("prefix", "words"), [("nothing", "The names begin with model"), (3, "a text")])
def test_a_prefix_that_nothing_has_is_named(vgg, prefix, words):
    with pytest.raises(qdeq.QdeqError, match=words):
        qdeq.dequantize_state_dict({"model": vgg.model.state_dict()}, prefix=prefix)


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_that_matches_is_an_error(vgg, strict):
    with pytest.raises(qdeq.QdeqValueError, match="sources that nothing uses"):
        qdeq.dequantize_state_dict(
            vgg.model.state_dict(), into=nn.ModuleDict({"other": nn.Conv3d(2, 2, 2)}), strict=strict
        )


def test_what_little_matched_is_listed(vgg):
    target = nn.ModuleDict({"classifier": nn.ModuleDict({"0": copy.deepcopy(models.TinyVGG().classifier[0])})})
    _, report = qdeq.dequantize_state_dict(vgg.model.state_dict(), into=target, strict=False)
    assert report.notes[""] == ["2 of 2 tensors written: classifier.0.weight, classifier.0.bias"]


def test_a_layer_wrapped_by_torch_is_found(vgg):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))

    torch.backends.quantized.engine = "fbgemm"
    work = tq.fuse_modules(Net().eval(), [["conv", "bn"]])
    work.conv.qconfig = work.fc.qconfig = tq.get_default_qconfig("fbgemm")
    prepared = tq.prepare(tq.add_quant_dequant(work))
    prepared(torch.randn(2, 3, 8, 8))
    int8 = tq.convert(prepared)
    for target in (Net().eval(), nn.DataParallel(Net().eval()), nn.Sequential(Net().eval())):
        _, report = qdeq.dequantize_state_dict(int8.state_dict(), into=target)
        x = torch.randn(2, 3, 8, 8)
        assert torch.allclose(target(x), qdeq.dequantize_model(int8)(x), atol=1e-5)
        assert "fc.module.' -> '" in report.notes[""][0]


@pytest.mark.parametrize("front", ["module.", "model."])
def test_rnns_constants_and_zero_biases_follow_a_prefix(front):
    case = build("dynamic")
    target = poisoned(models.Recurrent())
    state = below(front, case.model.state_dict())
    state |= {f"{front}attn.weight": torch.ones(2, 2), f"{front}attn.bias": torch.zeros(2)}
    target.attn = nn.Linear(2, 2, bias=False)
    _, report = qdeq.dequantize_state_dict(state, into=target)
    check_equal({k: v for k, v in target.state_dict().items() if not k.startswith("attn")}, case.expected)
    assert f"{front}attn.bias" in {item.source for item in report.dropped}
