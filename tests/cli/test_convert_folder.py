"""The commands on the folder of a released checkpoint."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.helpers import assert_error
from tests.files.released.folders import FP8_BLOCK, block_fp8, codes, scales, write_folder

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def source(tmp_path):
    return block_fp8(tmp_path / "fp8")[0]


@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_convert_then_verify(run, source, tmp_path, dtype):
    target = tmp_path / "dense"
    status, out, err = run("convert", source, target, *(() if dtype is None else ("--dtype", dtype)))
    assert (status, err) == (0, "")
    assert f"4 weights dequantized to {dtype or 'bfloat16'}, 3 other tensors as they were" in out
    assert "4 x scales and the like, used for the weights beside them" in out
    assert "1 x scale of activations: model.layers.0.attn.k_scale" in out
    status, out, err = run("verify", source, target)
    assert (status, err) == (0, "")
    assert out.startswith("equal: all 7 tensors")
    assert run("diff", target, target)[0] == 0


@pytest.mark.parametrize("change", ["a value", "a dtype", "a tensor that was not quantized", "a missing tensor"])
def test_verify_finds_what_is_wrong(run, source, tmp_path, change):
    target = tmp_path / "dense"
    run("convert", source, target)
    shard = target / "model-00001-of-00003.safetensors"
    tensors, name = load_file(shard), UP
    if change == "a value":
        tensors[UP][3, 4] += 1
    elif change == "a dtype":
        tensors[UP] = tensors[UP].half()
    elif change == "a missing tensor":
        del tensors[UP]
        index = json.loads((target / "model.safetensors.index.json").read_text())
        del index["weight_map"][UP]
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        name = "model.layers.0.mlp.gate.e_score_correction_bias"
        tensors[name] = tensors[name].bfloat16()
    save_file(tensors, shard)
    status, out, _ = run("verify", source, target)
    assert status == 1
    assert name in out
    assert "1 of 7 tensors" in out


def test_a_nan_with_other_bits_is_the_same_nan(run, source, tmp_path):
    target = tmp_path / "dense"
    run("convert", source, target)
    shard = target / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    bits = tensors[UP].view(torch.int16)
    bits[tensors[UP].isnan()] = -1
    save_file(tensors, shard)
    assert run("verify", source, target)[0] == 0


def test_dry_run_and_only(run, source, tmp_path):
    status, out, _ = run("convert", source, tmp_path / "dense", "--dry-run", "--only", "*.up_proj.*")
    assert status == 0
    assert "nothing was written" in out
    assert "6 tensors left out by --only" in out
    assert not (tmp_path / "dense").exists()
    assert run("convert", source, tmp_path / "dense", "--only", "*.up_proj.*")[0] == 0
    assert list(load_file(tmp_path / "dense/model-00001-of-00003.safetensors")) == [UP]
    assert run("verify", source, tmp_path / "dense", "--only", "*.up_proj.*")[0] == 0


@pytest.mark.parametrize(
    "options",
    [("--keep", "int8"), ("--shard-size", "1GB"), ("--force",), ("--prefix", "model"), ("--rename", "a=b"), ("--all",)],
)
def test_options_that_are_for_files(run, source, tmp_path, options):
    assert_error(run("convert", source, tmp_path / "dense", *options), options[0], "a single file as SRC, got a folder")
    assert not (tmp_path / "dense").exists()


def test_inspect(run, source):
    status, out, _ = run("inspect", source)
    assert status == 0
    row = next(line.split() for line in out.splitlines() if line.startswith(UP))
    assert row[:4] == [UP, "200x300", "float8_e4m3fn", "block"]
    assert "7 tensors, 4 of them quantized" in out
    listed = json.loads(run("inspect", source, "--json")[1])
    assert {entry["name"]: entry["qscheme"] for entry in listed}[UP] == "per_block"


def test_a_contradiction_is_one_line(run, tmp_path):
    tensors = {"a.weight": codes((200, 300)), "a.weight_scale_inv": scales((3, 3))}
    source = write_folder(tmp_path / "fp8", {"model.safetensors": tensors}, FP8_BLOCK)
    for arguments in (("convert", source, tmp_path / "dense"), ("inspect", source), ("verify", source, source)):
        assert_error(run(*arguments), "a.weight", "128 x 128", "3x3")


def test_a_single_file_becomes_a_file(run, tmp_path):
    source, target = tmp_path / "fp8.safetensors", tmp_path / "dense.safetensors"
    save_file({"a.weight": codes((20, 30)), "a.weight_scale": scales(()), "b": torch.ones(2).half()}, source)
    assert run("convert", source, target)[0] == 0
    assert {name: value.dtype for name, value in load_file(target).items()} == {
        "a.weight": torch.float32,
        "b": torch.float16,
    }
    assert run("verify", source, target)[0] == 0
    assert_error(run("convert", source, target, "--keep", "int8", "--force"), "a.weight", "leave keep out")


def test_explain_takes_files_and_says_so(run, source, tmp_path):
    run("convert", source, tmp_path / "dense", "--dtype", "float32")
    status, _, err = run("explain", source, tmp_path / "dense")
    assert status == 2
    assert "an existing file" in err
