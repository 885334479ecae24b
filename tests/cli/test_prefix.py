"""``--prefix`` and ``--all``."""

from __future__ import annotations

import torch

import qdeq
from qdeq.state_dicts.records import BESIDE, OPTIMIZER
from tests.cli.helpers import assert_error
from tests.files.torch_archive.conftest import build
from tests.files.torch_archive.forms import check_equal


def test_the_command_line_takes_a_prefix_and_everything(run, tmp_path):
    vgg = build("vgg")
    optimizer = {"state": {0: {"exp_avg": torch.ones(2, 2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    content = {"model": vgg.model.state_dict(), "optimizer": optimizer, "score": torch.tensor([1.0])}
    torch.save(content, tmp_path / "c.pth")
    status, out, err = run("convert", tmp_path / "c.pth", tmp_path / "a.safetensors", "--prefix", "model")
    assert (status, err) == (0, "")
    assert f"1 x {OPTIMIZER}: optimizer" in out
    with qdeq.open(tmp_path / "a.safetensors") as written:
        check_equal(dict(written), vgg.expected)
    assert run("verify", tmp_path / "c.pth", tmp_path / "a.safetensors", "--prefix", "model")[0] == 0
    status, out, _ = run("inspect", tmp_path / "c.pth")
    assert status == 0
    assert f"not listed: 1 x {BESIDE}: score" in out
    assert "exp_avg" not in out
    assert "optimizer.state.0.exp_avg" in run("inspect", tmp_path / "c.pth", "--all")[1]
    assert "model." not in run("inspect", tmp_path / "c.pth", "--prefix", "model.")[1].partition("not listed")[0]
    assert_error(run("inspect", tmp_path / "c.pth", "--prefix", "ema"), "--prefix", "'ema'")
