"""Blocks cover a weight once, in order, and hold its values."""

from __future__ import annotations

import pytest
import torch

import qdeq
from qdeq.weights.blocks import block_shape, blocks, float_block, take, weight_blocks
from tests.files.safetensors.cases import SMALL_BLOCK, quantized_cases
from tests.helpers.tensors import assert_same_bits


def test_blocks_cover_a_tensor_once_in_order():
    generator = torch.Generator().manual_seed(3)
    for _ in range(100):
        shape = tuple(
            torch.randint(0, 7, (int(torch.randint(0, 5, (), generator=generator)),), generator=generator).tolist()
        )
        x = torch.arange(torch.tensor(shape).prod().long().item() if shape else 1).reshape(shape)
        limit = int(torch.randint(1, 40, (), generator=generator))
        parts = [x[index] for index in blocks(shape, limit)]
        assert all(part.numel() <= limit and part.is_contiguous() for part in parts)
        assert [part.shape for part in parts] == [block_shape(shape, index) for index in blocks(shape, limit)]
        flat = torch.cat([part.reshape(-1) for part in parts]) if parts else x.reshape(-1)
        assert torch.equal(flat, x.reshape(-1)), (shape, limit)


@pytest.mark.parametrize("name", list(quantized_cases()))
def test_blocks_of_a_weight_are_its_values(name):
    q = quantized_cases()[name]
    weight = qdeq.unpack(q)
    for index in weight_blocks(weight, SMALL_BLOCK):
        got = float_block(weight, index, where=name, dtype=torch.float32)
        assert got.is_contiguous()
        assert_same_bits(got.reshape(-1), q.dequantize()[index].reshape(-1), name)
        assert take(weight, index).shape == q.dequantize()[index].shape
