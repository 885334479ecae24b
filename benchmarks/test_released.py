"""Codes with a grid of scales, as released checkpoints hold them: FP8 in blocks, by rows, by matrices."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness import Case, assert_same_bits, limits_given, measure
from qdeq import BlockWeight
from qdeq.weights.block_weight import block_reference, grid_shape
from qdeq.words import dtype_name

BLOCKS = {"128 x 128": (128, 128), "for each row": (1, 0), "for the matrix": (0, 0), "of 32 in a row": (1, 32)}


def make(shape, block, generator):
    """Codes as often as the weights of a layer have them; no NaN, whose bits are nobody's."""
    codes = (torch.randn(shape, generator=generator) * 100).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    scale = torch.rand(grid_shape(shape, block), generator=generator) * 0.01 + 1e-4
    return BlockWeight(codes, "float8_e4m3fn", scale, block, shape)


def into_buffer(benchmark, rounds, what, weight, dtype, goals):
    """Check the bits, then time against torch's expression and the bare loop; ``goals`` are those of a case."""
    out = torch.ones(weight.shape, dtype=dtype)
    assert_same_bits(weight.dequantize(out=out, dtype=dtype), block_reference(weight, dtype))
    case = Case(
        f"{what}, to {dtype_name(dtype)}, {weight.shape[0]} x {weight.shape[1]}",
        lambda: weight.dequantize(out=out, dtype=dtype),
        {"torch": lambda: block_reference(weight, dtype)},
        limits_given(out, weight.codes.numel()),
        out.nbytes,
        goals,
    )
    measure(benchmark, case, rounds=rounds)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("block", BLOCKS)
def test_fp8_given_buffer(benchmark, rounds, generator, quick, block, dtype):
    shape = (2048, 8192) if quick else (4096, 8192)
    weight = make(shape, BLOCKS[block], generator)
    goals = {"torch": 50, "bare loop": 1.15} if block != "of 32 in a row" else {"torch": 20}
    into_buffer(benchmark, rounds, f"FP8, scales {block}", weight, dtype, goals)


SMALL = {
    "NVFP4": ("float4_e2m1", 16),
    "MXFP4": ("float4_e2m1", 32),
    "int4 in groups of 128": ("int4_excess", 128),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=dtype_name)
@pytest.mark.parametrize("name", SMALL)
def test_small_codes_given_buffer(benchmark, rounds, generator, quick, name, dtype):
    shape = (2048, 8192) if quick else (4096, 8192)
    values, size = SMALL[name]
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, generator=generator)
    scale = torch.rand((shape[0], shape[1] // size), generator=generator) * 0.01 + 1e-4
    weight = BlockWeight(codes, values, scale, (1, size), shape)
    goals = {"torch": 50, "bare loop": 1.25 if size == 16 else 1.15}
    into_buffer(benchmark, rounds, name, weight, dtype, goals)
