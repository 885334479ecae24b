"""Folders that compressed-tensors' own writers made, against what its own readers make of them."""

from __future__ import annotations

import pytest
import torch

import qdeq
from tests.files.released.folders import same, write_folder

compressors = pytest.importorskip(
    "compressed_tensors.compressors", reason='compressed-tensors is not installed: pip install "qdeq[released]"',
    exc_type=ImportError,
)  # fmt: skip
quantization = pytest.importorskip("compressed_tensors.quantization")

SHAPE = (36, 128)
CASES = {
    "fp8 by channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, (36, 1)),
    "fp8 by tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, (1,)),
    "fp8 in blocks": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
        (3, 4),
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        (36, 8),
    ),
    "int8 by channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, (36, 1)),
    "int4 in groups": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
        (36, 4),
    ),
    "int3 in groups": (
        "pack-quantized",
        {"num_bits": 3, "type": "int", "strategy": "group", "group_size": 32},
        (36, 4),
    ),
    "int8 packed": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, (36, 1)),
}


@pytest.mark.parametrize(
    ("name", "symmetric"), [(name, s) for name in CASES for s in (True, False) if s or name.startswith("int")]
)
def test_what_it_writes_has_the_bits_that_it_reads(tmp_path, name, symmetric):
    form, args, grid = CASES[name]
    generator = torch.Generator().manual_seed(4)
    limit = {4: 6.0, 8: 448.0}[args["num_bits"]] if args["type"] == "float" else 2.0 ** (args["num_bits"] - 1)
    state = {"weight": torch.randn(SHAPE, generator=generator).bfloat16()}
    state["weight_scale"] = ((torch.rand(grid, generator=generator) + 0.5) * 3 / limit).bfloat16()
    if form == "nvfp4-pack-quantized":
        state["weight_global_scale"] = torch.tensor([37.0])
        state["weight_scale"] = (state["weight_scale"].float() * 37).to(torch.float8_e4m3fn).float()
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-3, 4, grid, dtype=torch.int8, generator=generator)
    scheme = quantization.QuantizationScheme(
        targets=["Linear"], weights=quantization.QuantizationArgs(symmetric=symmetric, **args), format=form
    )
    compressor = compressors.BaseCompressor.get_value_from_registry(form)
    stored = compressor.compress(dict(state), scheme)
    group = {"targets": ["Linear"], "format": form, "weights": {**args, "symmetric": symmetric}}
    config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    tensors = {f"fc.{key}": value.contiguous().clone() for key, value in stored.items() if value is not None}
    wanted = compressor.decompress({key: value for key, value in stored.items() if value is not None}, scheme)["weight"]
    with qdeq.open(write_folder(tmp_path, {"model.safetensors": tensors}, config)) as opened:
        assert same(opened["fc.weight"].dequantize(dtype=wanted.dtype), wanted)
