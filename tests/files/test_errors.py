"""What is wrong with a weight that came from a file is said with file and key, whoever finds out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qdeq
from qdeq.files.safetensors.format import SCALE_SUFFIX
from tests.files.torch_archive.forms import bits

INTEGERS = torch.arange(12, dtype=torch.int8).reshape(4, 3)
BAD_SCALES = [math.nan, math.inf, 0.0, -1.0, 1e300, 1e-300]


def weight(scale: float, per_channel: bool) -> Tensor:
    if not per_channel:
        return torch._make_per_tensor_quantized_tensor(INTEGERS, scale, 0)
    scales = torch.tensor([1.0, scale, 1.0, 1.0], dtype=torch.float64)
    return torch._make_per_channel_quantized_tensor(INTEGERS, scales, torch.zeros(4, dtype=torch.long), 0)


READERS = {
    "its own method": lambda file, folder: file["fc.weight"].dequantize(),
    "dequantize": lambda file, folder: qdeq.dequantize(file["fc.weight"]),
    "a state dict": lambda file, folder: qdeq.dequantize_state_dict(file),
    "into a model": lambda file, folder: qdeq.dequantize_state_dict(file, into=nn.ModuleDict({"fc": nn.Linear(3, 4)})),
    "written anew": lambda file, folder: qdeq.save_safetensors(file, folder / "other.safetensors"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("scale", BAD_SCALES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bad_scale(scale, per_channel, reader, suffix, tmp_path: Path):
    path = tmp_path / f"weights{suffix}"
    state = {"fc.weight": weight(scale, per_channel), "fc.bias": torch.zeros(4)}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        qdeq.save_safetensors(state, path, keep="int8")
        assert SCALE_SUFFIX.encode() in path.read_bytes()
    with qdeq.open(path) as file, pytest.raises(qdeq.QdeqValueError) as caught:
        READERS[reader](file, tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "fc.weight" in str(caught.value).partition(": expected")[0]
    assert "scales that are positive and finite in float32" in str(caught.value)
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.bool])
@pytest.mark.parametrize("into", [False, True])
def test_integers_as_the_bias_of_a_quantized_weight(dtype, into, tmp_path: Path):
    path, bias = tmp_path / "weights.pt", torch.ones(4).to(dtype)
    torch.save({"fc.weight": weight(0.5, False), "fc.bias": bias, "mask.bias": bias}, path)
    model = nn.ModuleDict({"fc": nn.Linear(3, 4)})
    before = model.fc.bias.detach().clone()
    with (
        qdeq.open(path) as file,
        pytest.raises(qdeq.QdeqValueError, match="expected a floating-point bias, got") as found,
    ):
        qdeq.dequantize_state_dict(file, into=model if into else None, strict=False)
    assert str(found.value).startswith(f"{path}: fc.bias: ")
    assert torch.equal(model.fc.bias, before)


def test_a_double_bias_becomes_float32_and_integers_of_others_stay(tmp_path: Path):
    path, bias = tmp_path / "weights.pt", torch.full((4,), 1 / 3, dtype=torch.float64)
    torch.save({"fc.weight": weight(0.5, False), "fc.bias": bias, "mask.bias": torch.ones(4, dtype=torch.bool)}, path)
    with qdeq.open(path) as file:
        found, _ = qdeq.dequantize_state_dict(file)
    assert torch.equal(bits(found["fc.bias"]), bits(bias.float()))
    assert found["mask.bias"].dtype == torch.bool
