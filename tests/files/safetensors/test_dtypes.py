"""Every dtype that the format knows, those that torch has no name for included."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import qdeq
from qdeq.files.safetensors.format import CODES

BYTES = torch.arange(96, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_what_safetensors_writes_comes_back(tmp_path, dtype):
    tensor = BYTES.view(dtype).view(2, -1)
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    with qdeq.open(tmp_path / "a.safetensors") as opened:
        got = opened["a"]
        assert (got.dtype, got.shape) == (dtype, tensor.shape)
        assert opened.entry("a").shape == tuple(tensor.shape)
        assert torch.equal(got.view(torch.uint8), load_file(tmp_path / "a.safetensors")["a"].view(torch.uint8))


def written(path, code, shape, size):
    text = json.dumps({"a": {"dtype": code, "shape": shape, "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(size)))
    return path


@pytest.mark.parametrize(
    ("code", "shape", "size", "read"),
    [
        ("F4", [3, 32], 48, (3, 16)),
        ("F4", [3, 3], 5, (5,)),
        ("F4", [], 1, (1,)),
        ("F6_E2M3", [2, 8], 12, (2, 6)),
        ("F6_E3M2", [5], 4, (4,)),
    ],
)
def test_shapes_count_values_that_share_bytes(tmp_path, code, shape, size, read):
    with qdeq.open(written(tmp_path / "a.safetensors", code, shape, size)) as opened:
        assert opened["a"].shape == read
        assert bytes(opened["a"].view(torch.uint8).flatten().tolist()) == bytes(range(size))
    with pytest.raises(qdeq.QdeqValueError, match=f"{size} bytes for {code}"):
        qdeq.open(written(tmp_path / "a.safetensors", code, shape, size + 1))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e8m0fnu])
def test_codes_without_scales_are_floats_to_be_converted(tmp_path, dtype):
    save_file({"a": BYTES.view(dtype)}, tmp_path / "a.safetensors")
    with qdeq.open(tmp_path / "a.safetensors") as opened:
        qdeq.save_safetensors(opened, tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["a"], BYTES.view(dtype).float())


def test_pairs_of_four_bits_stay_as_they_are(tmp_path):
    save_file({"a": BYTES.view(torch.float4_e2m1fn_x2)}, tmp_path / "a.safetensors")
    with qdeq.open(tmp_path / "a.safetensors") as opened:
        qdeq.save_safetensors(opened, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes()[-96:] == (tmp_path / "b.safetensors").read_bytes()[-96:]
    assert torch.equal(load_file(tmp_path / "b.safetensors")["a"].view(torch.uint8), BYTES)
