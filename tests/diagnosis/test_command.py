"""The command ``explain``."""

from __future__ import annotations

import json

import pytest
import torch

import qdeq
from qdeq.cli.commands import explain
from tools.faults import mutate


def run(*words: object) -> int:
    status = explain.main([str(word) for word in words], standalone_mode=False)
    return int(status or 0)


@pytest.fixture
def files(small, images, tmp_path):
    mutant = mutate("scale_missing", small, 1)
    for name, content in (
        ("int8", small.int8.state_dict()),
        ("right", small.rebuilt.state_dict()),
        ("wrong", mutant.float_model.state_dict()),
        ("model", small.int8),
        ("data", (images, torch.zeros(len(images), dtype=torch.int64))),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
    return tmp_path


def test_exit_status_and_files(files, capsys):
    assert run(files / "int8.pt", files / "right.pt") == 0
    assert "agree" in capsys.readouterr().out
    assert run(files / "int8.pt", files / "wrong.pt", "--json", files / "out.json", "--html", files / "out.html") == 1
    assert "scale" in capsys.readouterr().out
    assert json.loads((files / "out.json").read_text())["findings"][0]["kind"] == "scale_missing"
    assert (files / "out.html").exists()


def test_nothing_is_overwritten_without_force(files):
    (files / "out.json").write_text("mine")
    with pytest.raises(qdeq.QdeqValueError, match="--force"):
        run(files / "int8.pt", files / "right.pt", "--json", files / "out.json")
    assert (files / "out.json").read_text() == "mine"
    assert run(files / "int8.pt", files / "right.pt", "--json", files / "out.json", "--force") == 0


def test_running_takes_a_model_and_trust(files, capsys):
    for side in ("int8", "model"):
        with pytest.raises(qdeq.QdeqValueError, match="expected a model that can run"):
            run(files / f"{side}.pt", files / "wrong.pt", "--data", files / "data.pt")
