"""``qdeq convert`` and ``qdeq verify``."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qdeq
from qdeq.cli.console import size_text
from tests.cli.helpers import NAMES, assert_error


@pytest.mark.parametrize("options", [(), ("--dtype", "bfloat16"), ("--dtype", "float16"), ("--keep", "int8")])
def test_convert_then_verify(run, checkpoint, tmp_path, options):
    target = tmp_path / "model.safetensors"
    status, out, err = run("convert", checkpoint, target, *options)
    assert (status, err) == (0, "")
    assert str(target) in out.splitlines()[0]
    assert size_text(target.stat().st_size) in out
    assert "MB/s" in out
    assert "of activations" in out
    status, out, err = run("verify", checkpoint, target)
    assert (status, err) == (0, "")
    assert out.startswith("equal: all 4 tensors")


def test_convert_gives_the_float_bits(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    got, want = load_file(target), load_file(checkpoint.with_name("float.safetensors"))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name].view(torch.int32), want[name].view(torch.int32)) for name in want)


def test_convert_in_shards(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    status, out, _ = run("convert", checkpoint, target, "--shard-size", "0.4KB")
    assert status == 0
    assert "2 shards" in out
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert not target.exists()
    assert run("verify", checkpoint, target)[0] == 0


def test_a_dry_run_writes_nothing(run, checkpoint, tmp_path):
    status, out, _ = run("convert", checkpoint, tmp_path / "model.safetensors", "--dry-run")
    assert status == 0
    assert all(name in out for name in NAMES)
    assert "nothing was written" in out
    assert os.listdir(tmp_path) == []


def test_a_dry_run_sees_what_is_in_the_way(run, checkpoint, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    assert_error(run("convert", checkpoint, tmp_path / "model.safetensors", "--dry-run"), "no file of this name")


def test_only_and_rename(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    options = ("--only", "*.weight", "--rename", "0=features.0", "--rename", "2.weight=fc")
    status, out, _ = run("convert", checkpoint, target, *options)
    assert status == 0
    assert "2 tensors left out by --only: 0.bias, 2.bias" in out
    assert set(load_file(target)) == {"features.0.weight", "fc"}
    assert run("verify", checkpoint, target, *options)[0] == 0
    assert run("verify", checkpoint, target)[0] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "nothing*"), "'nothing*'"),
        (("--rename", "absent=x"), "'absent'"),
        (("--rename", "x"), "OLD=NEW"),
        (("--rename", "0.weight=2.weight"), "a name for each weight"),
        (("--shard-size", "lots"), "'lots'"),
        (("--dtype", "int8"), "'int8'"),
        (("--keep", "int8", "--dtype", "float16"), "float32 with keep"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_wrong_options_are_one_line(run, checkpoint, tmp_path, options, words):
    assert_error(run("convert", checkpoint, tmp_path / "model.safetensors", *options), words)
    assert os.listdir(tmp_path) == []


def test_convert_never_overwrites_without_force(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    assert_error(run("convert", checkpoint, target), str(target), "--force")
    assert target.read_text() == "mine"
    assert run("convert", checkpoint, target, "--force")[0] == 0
    assert set(load_file(target)) == set(NAMES)


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
def test_the_source_is_never_the_target(run, checkpoint, tmp_path, link):
    source = tmp_path / "a.safetensors"
    run("convert", checkpoint, source)
    before = source.read_bytes()
    target = source
    if link:
        target = tmp_path / "b.safetensors"
        link(source, target)
    for force in ((), ("--force",)):
        assert_error(run("convert", source, target, *force), "DST: expected another file than SRC")
    assert source.read_bytes() == before


def test_a_shard_of_the_source_is_not_the_target(run, checkpoint, tmp_path):
    run("convert", checkpoint, tmp_path / "a.safetensors", "--shard-size", "400")
    shard = tmp_path / "a-00001-of-00002.safetensors"
    for target in (shard, tmp_path / "a.safetensors"):
        assert_error(run("convert", tmp_path / "a.safetensors", target, "--force"), "DST: expected another file")
    assert run("verify", checkpoint, tmp_path / "a.safetensors")[0] == 0


def test_the_format_is_in_the_name(run, checkpoint, tmp_path):
    assert_error(run("convert", checkpoint, tmp_path / "model.pth"), "try model.safetensors")


@pytest.mark.parametrize("command", [("inspect",), ("convert", "x.safetensors"), ("verify", "x"), ("diff", "x")])
def test_files_that_cannot_be_read(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.pth").write_bytes(b"junk" * 100)
    (tmp_path / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    for name in ("missing.pth", "junk.pth", "cut.safetensors"):
        assert_error(run(command[0], name, *command[1:]), name)


def test_verify_finds_one_changed_bit(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    tensors = load_file(target)
    tensors["2.weight"].view(torch.int32)[3, 2] ^= 1
    save_file(tensors, target)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    assert "2.weight" in out
    assert "1 of 80 values differ" in out


@pytest.mark.parametrize("field", ["2.weight", "2.weight_scale", "2.weight_zero_point"])
def test_verify_finds_a_change_in_kept_integers(run, checkpoint, tmp_path, field):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target, "--keep", "int8")
    raw = bytearray(target.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    begin, _ = json.loads(raw[8 : 8 + length])[field]["data_offsets"]
    raw[8 + length + begin] ^= 1
    target.write_bytes(raw)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    assert "2.weight" in out


def test_verify_names_what_is_missing_extra_or_rounded(run, checkpoint, tmp_path):
    target = tmp_path / "model.safetensors"
    run("convert", checkpoint, target)
    tensors = load_file(target)
    tensors["more"] = tensors.pop("0.bias")
    tensors["2.bias"] = tensors["2.bias"].half()
    save_file(tensors, target)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert rows["0.bias"].endswith("missing")
    assert rows["more"].endswith("not in SRC")
    assert rows["2.bias"].endswith("float16, expected float32")


def test_kept_integers_bring_the_scales_of_activations(run, checkpoint, tmp_path):
    target = tmp_path / "kept.safetensors"
    status, out, _ = run("convert", checkpoint, target, "--keep", "int8")
    assert status == 0
    wanted = qdeq.open(checkpoint).activation_qparams
    assert f"{len(wanted)} scales and zero points of activations" in out
    assert "which are not weights" not in out
    with qdeq.open(target) as file:
        assert file.activation_qparams == wanted != {}
        assert not [name for name in file if "activation" in name]
    path, (scale, zero_point) = next(iter(wanted.items()))
    plain = load_file(target)
    assert float(plain[f"{path}.activation_scale"]) == scale
    assert int(plain[f"{path}.activation_zero_point"]) == zero_point
    assert qdeq.dequantize_state_dict(plain)[1].activation_qparams == wanted
    assert run("verify", checkpoint, target)[0] == 0
    with safe_open(target, "pt") as file:
        metadata = file.metadata()
    plain[f"{path}.activation_scale"] *= 2
    save_file(plain, target, metadata)
    status, out, _ = run("verify", checkpoint, target)
    assert status == 1
    assert "another scale or zero point" in out


def test_scales_of_what_is_left_out_are_named(run, checkpoint, tmp_path):
    target = tmp_path / "kept.safetensors"
    _, out, _ = run("convert", checkpoint, target, "--keep", "int8", "--only", "0.*")
    assert "1 scales of activations, of what is left out: 2" in out
    with qdeq.open(target) as file, qdeq.open(checkpoint) as source:
        assert file.activation_qparams == {"0": source.activation_qparams["0"]}
    status, out, _ = run("verify", checkpoint, target, "--only", "2.*")
    assert status == 1
    assert "not in SRC: a scale or zero point of the activation" in out


def test_a_weight_with_the_name_of_an_output_scale_is_refused(run, tmp_path):
    state = {"0.weight": torch.ones(2), "0.scale": torch.tensor(0.5), "0.zero_point": torch.tensor(3)}
    torch.save({**state, "0.activation_scale": torch.ones(1)}, tmp_path / "two.pth")
    result = run("convert", tmp_path / "two.pth", tmp_path / "kept.safetensors", "--keep", "int8")
    assert_error(result, "0.activation_scale: expected no weight of this name")
    assert not (tmp_path / "kept.safetensors").exists()
