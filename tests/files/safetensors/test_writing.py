"""save_safetensors: the right bits, complete files or none, and the integers kept and read back."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import qdeq
from qdeq.files import streaming
from qdeq.files.safetensors.layout import parse_size
from qdeq.weights.blocks import weight_blocks
from tests.files.safetensors.cases import SMALL_BLOCK, quantized_cases
from tests.helpers.tensors import assert_same_bits, random_quantized

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few values, so that small tensors take many."""
    monkeypatch.setattr("qdeq.files.safetensors.writing.weight_blocks", lambda value: weight_blocks(value, SMALL_BLOCK))


def all_cases():
    weights = {name: qdeq.unpack(q) for name, q in quantized_cases().items()}
    others = {
        "conv.bias": torch.randn(6),
        "steps": torch.tensor(3),
        "mask": torch.tensor([True, False]),
        "turned": torch.randn(5, 4).t(),
        "half": torch.randn(3).half(),
    }
    return {**weights, **others}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_are_those_of_dequantize(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    saved = qdeq.save_safetensors(all_cases(), path, dtype=dtype)
    got = load_file(path)
    for name, q in quantized_cases().items():
        want = qdeq.dequantize(q, dtype=dtype).contiguous()
        assert_same_bits(got[name], want, name)
        if dtype == torch.float32:
            assert torch.equal(want.view(torch.int32), q.dequantize().contiguous().view(torch.int32))
    cases = all_cases()
    assert got["half"].dtype == got["conv.bias"].dtype == dtype
    assert torch.equal(got["steps"], cases["steps"])
    assert torch.equal(got["mask"], cases["mask"])
    assert got["turned"].shape == (4, 5)
    assert saved.files == (path,)
    assert saved.bytes == path.stat().st_size
    assert saved.tensors == len(cases) == len(got)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_quantized_tensors_need_not_be_unpacked(tmp_path):
    qdeq.save_safetensors(quantized_cases(), tmp_path / "a.safetensors")
    qdeq.save_safetensors({n: qdeq.unpack(q) for n, q in quantized_cases().items()}, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("shard_size", [None, "1KB"])
def test_kept_integers_come_back(tmp_path, shard_size):
    path = tmp_path / "model.safetensors"
    cases = all_cases()
    qdeq.save_safetensors(cases, path, keep="int8", shard_size=shard_size)
    with qdeq.open(path) as back:
        assert set(back) == set(cases)
        for name, want in cases.items():
            got = back[name]
            if isinstance(want, torch.Tensor):
                assert got.dtype == want.dtype, name
                assert torch.equal(got, want), name
                continue
            assert (got.axis, got.qscheme, got.dtype, got.shape) == (want.axis, want.qscheme, want.dtype, want.shape)
            assert torch.equal(got.int_repr, want.int_repr), name
            assert torch.equal(got.scale.view(torch.int64), want.scale.view(torch.int64)), name
            assert torch.equal(got.zero_point, want.zero_point), name


def test_kept_integers_have_documented_names(tmp_path):
    path = tmp_path / "model.safetensors"
    q = random_quantized((4, 3), torch.qint8, 0, torch.Generator().manual_seed(1))
    qdeq.save_safetensors({"fc.weight": q}, path, keep="int8")
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"fc.weight", "fc.weight_scale", "fc.weight_zero_point"}
        kinds = [file.get_tensor(name).dtype for name in ("fc.weight", "fc.weight_scale", "fc.weight_zero_point")]
        assert kinds == [torch.int8, torch.float64, torch.int64]
        text = {"fc.weight": {"dtype": "qint8", "qscheme": "per_channel_affine", "axis": 0, "shape": [4, 3]}}
        assert json.loads(file.metadata()["qdeq.weights"]) == text


def test_shards_and_index(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {f"{n}.weight": torch.full((100,), float(n)) for n in range(5)}
    saved = qdeq.save_safetensors(weights, path, shard_size=800)
    names = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(os.listdir(tmp_path)) == [*names, "model.safetensors.index.json"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"] == {f"{n}.weight": names[n // 2] for n in range(5)}
    assert sum(file.stat().st_size for file in saved.files) == saved.bytes
    for opened in (path, tmp_path / "model.safetensors.index.json"):
        with qdeq.open(opened) as back:
            assert {name: float(back[name][0]) for name in back} == {f"{n}.weight": n for n in range(5)}


def test_one_shard_needs_no_index(tmp_path):
    qdeq.save_safetensors({"a": torch.ones(3)}, tmp_path / "model.safetensors", shard_size="1GB")
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("mine")
    with pytest.raises(qdeq.QdeqValueError, match=r"model\.safetensors: expected no file of this name"):
        qdeq.save_safetensors({"a": torch.ones(3)}, path)
    assert path.read_text() == "mine"
    qdeq.save_safetensors({"a": torch.ones(3)}, path, force=True)
    assert load_file(path)["a"].tolist() == [1, 1, 1]


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path):
    path = tmp_path / "model.safetensors"

    class Slow(dict):
        described = False

        def __getitem__(self, name):
            if self.described:  # the second time it is written
                path.write_text("theirs")
            self.described = True
            return super().__getitem__(name)

    with pytest.raises(qdeq.QdeqValueError, match="one that is there"):
        qdeq.save_safetensors(Slow(a=torch.ones(3)), path)
    assert path.read_text() == "theirs"
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_force_leaves_no_earlier_set_behind(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {f"{n}": torch.ones(100) for n in range(4)}
    qdeq.save_safetensors(weights, path, shard_size=400)
    with pytest.raises(qdeq.QdeqValueError, match="one that is there"):
        qdeq.save_safetensors(weights, path)
    qdeq.save_safetensors(weights, path, shard_size=800, force=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(os.listdir(tmp_path)) == [*names, "model.safetensors.index.json"]
    qdeq.save_safetensors(weights, path, force=True)
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("when", [0, 3])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, force, when):
    calls = []
    pwrite = os.pwrite

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) > when:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*arguments)

    monkeypatch.setattr(os, "pwrite", fails)
    with pytest.raises(qdeq.QdeqError, match="expected room for .* got No space left on device"):
        qdeq.save_safetensors({"a": torch.ones(1000)}, tmp_path / "model.safetensors", force=force, shard_size=1)
    assert os.listdir(tmp_path) == []


def test_room_is_checked_first(tmp_path, monkeypatch):
    real = os.statvfs(tmp_path)
    full = os.statvfs_result((*real[:4], 0, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(qdeq.QdeqError, match="room for .* got 0 free bytes"):
        qdeq.save_safetensors({"a": torch.ones(1000)}, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_and_no_thread(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(streaming, "_write_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        qdeq.save_safetensors({"a": torch.ones(1000), "b": torch.ones(1000)}, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("qdeq-")]


def test_a_failed_rename_takes_back_the_files_before_it(tmp_path, monkeypatch):
    link = os.link

    def second_fails(source, target):
        if "00002" in str(target):
            raise OSError(errno.EIO, "Input/output error")
        link(source, target)

    monkeypatch.setattr(os, "link", second_fails)
    with pytest.raises(qdeq.QdeqError, match="00002.*Input/output error"):
        qdeq.save_safetensors({"a": torch.ones(9), "b": torch.ones(9)}, tmp_path / "model.safetensors", shard_size=1)
    assert os.listdir(tmp_path) == []


def test_without_hard_links_a_rename_does(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    qdeq.save_safetensors({"a": torch.ones(9)}, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_new_files_have_ordinary_permissions(tmp_path):
    qdeq.save_safetensors({"a": torch.ones(9)}, tmp_path / "model.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_bad_scales_name_the_weight(tmp_path):
    bad = qdeq.QuantizedWeight(
        torch.ones(2, 2, dtype=torch.int8), torch.tensor(float("nan")).double(), torch.tensor(0), None,
        "per_tensor_affine", "qint8", (2, 2),
    )  # fmt: skip
    with pytest.raises(qdeq.QdeqValueError, match=r"fc\.weight: expected scales that are positive"):
        qdeq.save_safetensors({"fc.weight": bad}, tmp_path / "model.safetensors")
    assert os.listdir(tmp_path) == []
    qdeq.save_safetensors({"fc.weight": bad}, tmp_path / "model.safetensors", keep="int8")


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"a": torch.ones(1)}, {"dtype": torch.float64}, "dtype: expected one of"),
        ({"a": torch.ones(1)}, {"keep": "int4"}, "keep: expected None or"),
        ({"a": torch.ones(1)}, {"keep": "int8", "dtype": torch.float16}, "float32 with keep"),
        ({"a": torch.ones(1)}, {"shard_size": "many"}, "shard_size: expected bytes"),
        ({"a": torch.ones(1)}, {"shard_size": 0}, "shard_size: expected bytes"),
        ({"a": [1.0]}, {}, "a: expected a QuantizedWeight or a tensor, got list"),
        ({"": torch.ones(1)}, {}, "expected names of tensors"),
        ({"__metadata__": torch.ones(1)}, {}, "expected names of tensors"),
        ({"a": torch.ones(1, dtype=torch.complex128)}, {}, "a: expected one of"),
        ({"a": torch.ones(1, device="meta")}, {}, "a: expected a dense tensor"),
        ([torch.ones(1)], {}, "weights: expected a mapping, got list"),
    ],
)
def test_arguments_are_refused_in_words(tmp_path, weights, options, message):
    with pytest.raises(qdeq.QdeqError, match=message):
        qdeq.save_safetensors(weights, tmp_path / "model.safetensors", **options)
    assert os.listdir(tmp_path) == []


def test_names_that_collide_are_refused(tmp_path):
    q = random_quantized((4, 3), torch.qint8, 0, torch.Generator().manual_seed(1))
    with pytest.raises(qdeq.QdeqValueError, match="w_scale: expected one tensor of this name, got two"):
        qdeq.save_safetensors({"w": q, "w_scale": torch.ones(1)}, tmp_path / "m.safetensors", keep="int8")


def test_no_folder(tmp_path):
    with pytest.raises(qdeq.QdeqError, match="expected a folder to write to"):
        qdeq.save_safetensors({"a": torch.ones(1)}, tmp_path / "no" / "model.safetensors")


@pytest.mark.parametrize(
    ("text", "size"), [(5, 5), ("5", 5), ("5KB", 5000), ("1.5 mb", 1_500_000), ("2GiB", 2**31), ("3GB", 3 * 10**9)]
)
def test_sizes(text, size):
    assert parse_size(text, "size") == size
