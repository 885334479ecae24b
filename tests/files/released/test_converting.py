"""Released folders to dense ones: what is written, what stays, stops in the middle, and what is never touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import qdeq
from qdeq.files.released.checkpoint import MARKER
from tests.files.released.folders import FP8_BLOCK, block_fp8, block_scales, codes, dense, same, scales, write_folder


def loaded(folder):
    return {key: value for path in folder.glob("*.safetensors") for key, value in load_file(path).items()}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_weight_and_every_other_tensor(tmp_path, dtype):
    src, tensors = block_fp8(tmp_path / "src")
    before = contents(src)
    result = qdeq.dequantize_checkpoint(src, tmp_path / "dst", dtype=dtype)
    got, wanted = loaded(tmp_path / "dst"), dense(tensors)
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        is_quantized = tensors[name].element_size() == 1
        assert same(got[name], value.to(dtype) if is_quantized else value), name
    assert (result.tensors, result.dequantized) == (len(wanted), 4)
    assert contents(src) == before
    assert {path.relative_to(tmp_path / "dst").as_posix() for path in result.files} == set(contents(tmp_path / "dst"))
    assert result.bytes == sum(map(len, contents(tmp_path / "dst").values()))


def test_shards_index_and_config(tmp_path):
    src, tensors = block_fp8(tmp_path / "src")
    qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    index = json.loads((tmp_path / "dst/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in loaded(tmp_path / "dst").values())
    for name, shard in index["weight_map"].items():
        assert tensors[name] is not None
        assert name in load_file(tmp_path / "dst" / shard)
        assert name in load_file(src / shard)  # where its codes were
    assert not (tmp_path / "dst/model-00003-of-00003.safetensors").exists()  # it held a scale, no more
    with safe_open(tmp_path / "dst/model-00001-of-00003.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads((tmp_path / "dst/config.json").read_text())
    assert config == {"architectures": ["Some"], "torch_dtype": "bfloat16"}


def test_the_config_loses_what_it_says_of_quantization_alone(tmp_path):
    src = write_folder(
        tmp_path / "src", {"model.safetensors": {"a.weight": codes((4, 4)), "a.weight_scale": scales(())}}, None
    )
    section = {"quant_method": "fp8"}
    inner = {"hidden_size": 4, "dtype": "bfloat16", "quantization_config": section, "name": "ß"}
    text = {"dtype": "bfloat16", "quantization_config": section, "expert_dtype": "fp8", "text_config": inner}
    (src / "config.json").write_text(json.dumps(text))
    qdeq.dequantize_checkpoint(src, tmp_path / "dst", dtype=torch.float32)
    wanted = {"dtype": "float32", "text_config": {"hidden_size": 4, "dtype": "float32", "name": "ß"}}
    assert json.loads((tmp_path / "dst/config.json").read_text()) == wanted


def test_other_files(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    (src / "sub" / "deep").mkdir(parents=True)
    (src / ".cache").mkdir()
    left = {"hf_quant_config.json", "other.gguf", "consolidated.safetensors", "pytorch_model.bin"}
    for name in ("tokenizer.json", "sub/deep/code.py", ".gitattributes", ".cache/x", *left):
        (src / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "blob").write_text("from the cache")
    (src / "link").symlink_to(tmp_path / "elsewhere")
    (src / "vocab.txt").symlink_to(tmp_path / "blob")
    (src / "gone").symlink_to(tmp_path / "nowhere")
    result = qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    got = contents(tmp_path / "dst")
    assert got["tokenizer.json"] == b"tokenizer.json"
    assert got["sub/deep/code.py"] == b"sub/deep/code.py"
    assert got["vocab.txt"] == b"from the cache"
    assert not (tmp_path / "dst/vocab.txt").is_symlink()
    assert ".gitattributes" in got
    assert set(result.left_out) == left | {"gone", "link", ".cache"}
    assert not {name for name in left if (tmp_path / "dst" / name).exists()}
    assert MARKER not in got


def test_only_some_and_a_dry_run(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    seen = qdeq.dequantize_checkpoint(src, tmp_path / "dst", only=["*.mlp.up_proj.*", "model.norm.*"], dry_run=True)
    assert not (tmp_path / "dst").exists()
    done = qdeq.dequantize_checkpoint(src, tmp_path / "dst", only=["*.mlp.up_proj.*", "model.norm.*"])
    assert done == seen
    assert set(loaded(tmp_path / "dst")) == {"model.layers.0.mlp.up_proj.weight", "model.norm.weight"}
    with pytest.raises(qdeq.QdeqValueError, match="patterns of names"):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst2", only=["nothing.*"])


class StopError(Exception):
    """Somebody stops the conversion."""


def stopping_after(calls):
    count = 0

    def progress(name, size):
        nonlocal count
        count += 1
        if count == calls:
            raise StopError

    return progress


def test_a_stop_at_any_moment_is_taken_up_again(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    (src / "tokenizer.json").write_text("{}")
    steps = []
    qdeq.dequantize_checkpoint(src, tmp_path / "whole", progress=lambda name, size: steps.append(size))
    wanted = contents(tmp_path / "whole")
    assert sum(steps) == sum(map(len, wanted.values()))
    for calls in range(1, len(steps) + 1):
        dst = tmp_path / f"dst{calls}"
        with pytest.raises(StopError):
            qdeq.dequantize_checkpoint(src, dst, progress=stopping_after(calls))
        left = contents(dst)
        assert left.pop(MARKER)
        assert {name: wanted[name] for name in left} == left  # whole files, no others
        with pytest.raises(qdeq.QdeqValueError, match="not finished"):
            qdeq.open(dst)
        times = {name: (dst / name).stat().st_mtime_ns for name in left}
        qdeq.dequantize_checkpoint(src, dst)
        assert contents(dst) == wanted
        assert times == {name: (dst / name).stat().st_mtime_ns for name in left}


KILLED = """
import os, signal, sys
import qdeq
left = int(sys.argv[3])
def progress(name, size):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
qdeq.dequantize_checkpoint(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_a_killed_process_leaves_nothing_that_harms(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    qdeq.dequantize_checkpoint(src, tmp_path / "whole")
    dst = tmp_path / "dst"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, src, dst, "4"], check=False, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == -signal.SIGKILL
    assert any(path.suffix == ".tmp" for path in dst.iterdir())
    qdeq.dequantize_checkpoint(src, dst)
    assert contents(dst) == contents(tmp_path / "whole")


def test_nothing_is_overwritten(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    dst = tmp_path / "dst"
    dst.mkdir()
    (dst / "mine.txt").write_text("mine")
    with pytest.raises(qdeq.QdeqValueError, match="which holds files"):
        qdeq.dequantize_checkpoint(src, dst)
    assert contents(dst) == {"mine.txt": b"mine"}
    (tmp_path / "file").write_text("")
    for target, message in (
        (tmp_path / "file", "no file of this name"),
        (src, "outside src"),
        (src / "in", "outside src"),
        (tmp_path / "no" / "dst", "no folder"),
    ):
        with pytest.raises(qdeq.QdeqError, match=message):
            qdeq.dequantize_checkpoint(src, target)
    qdeq.dequantize_checkpoint(src, tmp_path / "done")
    with pytest.raises(qdeq.QdeqValueError, match="which holds files"):
        qdeq.dequantize_checkpoint(src, tmp_path / "done")


def test_a_folder_begun_otherwise_is_not_finished_by_another_call(tmp_path):
    src, _ = block_fp8(tmp_path / "src")
    dst = tmp_path / "dst"
    with pytest.raises(StopError):
        qdeq.dequantize_checkpoint(src, dst, progress=stopping_after(6))
    with pytest.raises(qdeq.QdeqValueError, match="begun with another source or other arguments"):
        qdeq.dequantize_checkpoint(src, dst, dtype=torch.float32)
    shard = next(path for path in dst.glob("*.safetensors"))
    with shard.open("ab") as file:
        file.write(b"x")
    with pytest.raises(qdeq.QdeqValueError, match=f"{shard.name}: expected a finished file of"):
        qdeq.dequantize_checkpoint(src, dst)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    import fcntl

    src, _ = block_fp8(tmp_path / "src")
    (tmp_path / "dst").mkdir()
    descriptor = os.open(tmp_path / "dst", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(qdeq.QdeqError, match="no other process in this folder"):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    os.close(descriptor)


def test_a_bad_scale_in_the_last_shard_is_found_before_anything_is_written(tmp_path):
    bad = block_scales((200, 300))
    bad[1, 2] = float("nan")
    first = {
        "a.weight": codes((200, 300)),
        "b.weight": codes((200, 300)),
        "a.weight_scale_inv": block_scales((200, 300)),
    }
    src = write_folder(
        tmp_path / "src", {"a.safetensors": first, "b.safetensors": {"b.weight_scale_inv": bad}}, FP8_BLOCK
    )
    with pytest.raises(qdeq.QdeqValueError, match=r"b\.weight: expected finite scales, got nan at \(1, 2\)"):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


@pytest.mark.parametrize("shard", ["../up.safetensors", "config.json", "/tmp/x.safetensors", "a\0b"])
def test_an_index_cannot_name_a_file_elsewhere(tmp_path, shard):
    src, _ = block_fp8(tmp_path / "src")
    save_file({"x": torch.ones(2)}, tmp_path / "up.safetensors")
    save_file({"x": torch.ones(2)}, src / "config.json")
    index = json.loads((src / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = shard
    (src / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(qdeq.QdeqError):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()


def test_what_is_no_released_checkpoint(tmp_path):
    src = write_folder(tmp_path / "src", {"model.safetensors": {"a": torch.ones(2)}}, None)
    with pytest.raises(qdeq.QdeqValueError, match="a released checkpoint with quantized weights"):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst")
    with pytest.raises(qdeq.QdeqValueError, match="the folder of a checkpoint"):
        qdeq.dequantize_checkpoint(src / "model.safetensors", tmp_path / "dst")
    with pytest.raises(qdeq.QdeqValueError, match="dtype"):
        qdeq.dequantize_checkpoint(src, tmp_path / "dst", dtype=torch.float64)


def test_damaged_folders_are_read_or_refused_and_nothing_is_left(tmp_path):
    """Bytes of the headers, the index and the config are changed at random; the seed is printed."""
    seed = int(os.environ.get("QDEQ_TEST_SEED", time.time_ns() % 2**31))
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high: int(torch.randint(high, (), generator=generator))  # noqa: E731
    src, _ = block_fp8(tmp_path / "src")
    files = sorted(path for path in src.iterdir())
    refused = 0
    for trial in range(60):
        path = files[draw(len(files))]
        whole = path.read_bytes()
        data = bytearray(whole)
        for _ in range(1 + draw(3)):
            data[draw(min(len(data), 900))] = (draw(256), *b'0912{}[]",')[draw(11)]
        path.write_bytes(data[: draw(len(data))] if draw(6) == 0 else data)
        dst = tmp_path / f"dst{trial}"
        try:
            qdeq.dequantize_checkpoint(src, dst)
        except qdeq.QdeqError:
            refused += 1
            assert not dst.exists()
        path.write_bytes(whole)
    assert refused > 10
    assert set(tmp_path.iterdir()) - {src} == set(tmp_path.glob("dst*"))
