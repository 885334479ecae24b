"""Random packed weights of every family, and what torch says they hold."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from tools.models import engine as engine

Q = torch.ops.quantized


def random_quantized(rng: random.Random, shape: tuple[int, ...], *, per_channel: bool) -> Tensor:
    """qint8 over the whole range; zero points at both ends too; scales that float32 cannot hold."""
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    q = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    if not per_channel:
        return torch._make_per_tensor_quantized_tensor(q, rng.random() + 1e-3, rng.choice([-128, 127, 0, 5]))
    scale = torch.rand(shape[0], dtype=torch.float64, generator=generator) + 1e-3
    zero_point = torch.randint(-128, 128, (shape[0],), generator=generator)
    return torch._make_per_channel_quantized_tensor(q, scale, zero_point, 0)


def random_linear(rng: random.Random) -> Any:
    around_blocks = [7, 8, 9, 47, 48, 49, 511, 512, 513]
    rows, cols = (rng.choice(around_blocks) if rng.random() < 0.3 else rng.randint(1, 700) for _ in range(2))
    weight = random_quantized(rng, (rows, cols), per_channel=rng.random() < 0.5)
    return Q.linear_prepack(weight, torch.randn(rows) if rng.random() < 0.5 else None)


# (in, out) channels per group; the small ones reach fbgemm's groupwise and depthwise packings.
CHANNELS = [(1, 1), (1, 2), (2, 2), (4, 4), (8, 8), (16, 16), (3, 5), (64, 70)]


def random_conv(rng: random.Random, dims: int) -> Any:
    groups = rng.choice([1, 1, 2, 3, 8, 16, 32, 40])
    channels, rows = rng.choice(CHANNELS) if rng.random() < 0.7 else (rng.randint(1, 20), rng.randint(1, 20))
    kernel = [rng.choice([1, 3, 3, 5])] * dims if rng.random() < 0.7 else [rng.randint(1, 4) for _ in range(dims)]
    padding = [(size - 1) // 2 for size in kernel] if rng.random() < 0.7 else [rng.randint(0, 1)] * dims
    stride, dilation = [rng.choice([1, 1, 2])] * dims, [rng.choice([1, 1, 1, 2])] * dims
    weight = random_quantized(rng, (rows * groups, channels, *kernel), per_channel=rng.random() < 0.5)
    prepack = {1: Q.conv1d_prepack, 2: Q.conv2d_prepack, 3: Q.conv3d_prepack}[dims]
    return prepack(weight, None, stride, padding, dilation, groups)


def is_direct(channels: int, rows: int, groups: int, kernel: list[int], stride: list[int], padding: list[int]) -> bool:
    """fbgemm's rule for the packing that cannot be unpacked (dilation 1)."""
    return (
        len(kernel) == 2
        and kernel[0] == 2
        and kernel[1] <= 6
        and groups == 1
        and channels % 8 == rows % 8 == 0
        and max(stride) <= 2
        and max(padding) == 0
    )


def random_transposed_conv(rng: random.Random, dims: int) -> Any:
    groups = rng.choice([1, 1, 2, 3, 8])
    channels, rows = rng.randint(1, 20), rng.randint(1, 20)
    kernel = [rng.randint(1, 4) for _ in range(dims)]
    stride, padding = [rng.choice([1, 2])] * dims, [rng.randint(0, 1)] * dims
    if is_direct(channels, rows, groups, kernel, stride, padding):
        padding = [1] * dims
    weight = random_quantized(rng, (channels * groups, rows, *kernel), per_channel=False)
    prepack = {1: Q.conv_transpose1d_prepack, 2: Q.conv_transpose2d_prepack, 3: Q.conv_transpose3d_prepack}[dims]
    return prepack(weight, None, stride, padding, [0] * dims, [1] * dims, groups)


def direct_conv(rng: random.Random, channels: int = 16, rows: int = 8, width: int = 2) -> tuple[Any, Tensor]:
    """A transposed convolution that fbgemm packs for its direct kernel, and the weight that went in."""
    weight = random_quantized(rng, (channels, rows, 2, width), per_channel=False)
    return Q.conv_transpose2d_prepack(weight, None, [2, 2], [0, 0], [0, 0], [1, 1], 1), weight
