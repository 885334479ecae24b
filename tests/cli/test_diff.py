"""``qdeq diff``."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file


def test_diff_of_equal_files_in_two_formats(run, checkpoint):
    status, out, _ = run("diff", checkpoint, checkpoint.with_name("float.safetensors"))
    assert status == 0
    assert "weights: 100.00 % of 188 values" in out
    assert "biases: 100.00 % of 9 values" in out
    assert "equal: 4 tensors" in out


def test_diff_measures_and_names(run, checkpoint, tmp_path):
    tensors = load_file(checkpoint.with_name("float.safetensors"))
    tensors["0.weight"][0, 0, 0, 0] += 1
    tensors["2.bias"] = torch.zeros(6)
    tensors["new"] = tensors.pop("0.bias")
    save_file(tensors, tmp_path / "other.safetensors")
    status, out, _ = run("diff", checkpoint, tmp_path / "other.safetensors")
    assert status == 1
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert rows["0.weight"][:3] == ["values", "99.07", "1"]
    assert float(rows["0.weight"][3]) == pytest.approx(1 / 108, rel=0.01)
    assert rows["2.bias"] == ["5", "and", "6"]
    assert rows["0.bias"] == ["only", "in", "int8.pth"]
    assert rows["new"] == ["only", "in", "other.safetensors"]
    assert "2.weight" not in rows
    assert "different: 1 values, 1 shapes, 1 only in A, 1 only in B" in out


def test_diff_knows_every_name_of_a_bias(run, tmp_path):
    names = ("a.bias", "rnn.bias_ih_l0", "attention.in_proj_bias", "a.weight", "bias.weight", "rnn.weight_hh_l0")
    save_file({name: torch.ones(3) for name in names}, tmp_path / "a.safetensors")
    out = run("diff", tmp_path / "a.safetensors", tmp_path / "a.safetensors")[1]
    assert "weights: 100.00 % of 9 values" in out
    assert "biases: 100.00 % of 9 values" in out


def test_diff_counts_signs_of_zero_and_nan(run, tmp_path):
    nan = float("nan")
    save_file({"a": torch.tensor([0.0, nan, 1.0])}, tmp_path / "a.safetensors")
    save_file({"a": torch.tensor([-0.0, nan, 1.0])}, tmp_path / "b.safetensors")
    status, out, _ = run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert status == 1
    assert ["a", "values", "66.67", "0", "0"] in [line.split() for line in out.splitlines()]


def test_almost_equal_is_not_100_percent(run, tmp_path):
    a = torch.zeros(200_000)
    save_file({"a": a}, tmp_path / "a.safetensors")
    a[7] = 1
    save_file({"a": a}, tmp_path / "b.safetensors")
    assert "<100 %" in run("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")[1]
