"""Packed weights, read where they lie, against torch's unpack() and dequantize(), and against the plain kernel."""

from __future__ import annotations

import pytest
import torch

import qdeq
from benchmarks.harness import Case, assert_same_bits, calls_for, limits_given, measure

Q = torch.ops.quantized


@pytest.fixture(autouse=True)
def fbgemm():
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    yield
    torch.backends.quantized.engine = before


def per_channel(shape, generator):
    ints = torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
    scale = (torch.rand(shape[0], generator=generator) * 0.01 + 0.001).double()
    zero_point = torch.randint(-128, 128, (shape[0],), generator=generator)
    return torch._make_per_channel_quantized_tensor(ints, scale, zero_point, 0)


def compare(benchmark, rounds, name, obj, unpack, goal, *, bits=8, before=None):
    """Time qdeq.dequantize(obj, out=out) in a buffer with the strides of torch's result.

    The plain kernel and the limits write into the same buffer: how fast memory is differs from one to the next.
    """
    q = unpack()
    want = q.dequantize()
    out = torch.empty_strided(want.shape, want.stride()).fill_(1)
    assert_same_bits(qdeq.dequantize(q, out=out), want)
    out.fill_(1)
    assert_same_bits(qdeq.dequantize(obj, out=out), want)
    limits = {"plain kernel": lambda: qdeq.dequantize(q, out=out)}
    limits.update(limits_given(out, want.numel() * bits // 8))
    peers = {"torch": lambda: unpack().dequantize()}
    case = Case(name, lambda: qdeq.dequantize(obj, out=out), peers, limits, out.nbytes, goal)
    if before is None:
        case.calls = calls_for(out.nbytes)
    else:
        case.before = before
    measure(benchmark, case, rounds=rounds)


def test_linear(benchmark, quick, rounds, generator):
    rows, cols = (512, 25088) if quick else (4096, 25088)
    obj = Q.linear_prepack(per_channel((rows, cols), generator), None)
    goal = {"torch": 25, "plain kernel": 1.5}
    name = f"packed Linear {rows} x {cols}, given buffer"
    compare(benchmark, rounds, name, obj, lambda: obj.unpack()[0], goal)


CONVS = [
    ("512x512x3x3, groups 1", (512, 512, 3, 3), 1, 10),
    ("2048x64x3x3, groups 32", (2048, 64, 3, 3), 32, 10),
    ("1024x16x3x3, groups 64", (1024, 16, 3, 3), 64, 10),
    ("depthwise 32,768 channels 3x3", (32768, 1, 3, 3), 32768, 10),
    ("depthwise 512 channels 3x3", (512, 1, 3, 3), 512, 3),
]


@pytest.mark.parametrize(("name", "shape", "groups", "goal"), CONVS, ids=[name for name, *_ in CONVS])
def test_conv(benchmark, rounds, generator, name, shape, groups, goal):
    obj = Q.conv2d_prepack(per_channel(shape, generator), None, [1, 1], [1, 1], [1, 1], groups)
    compare(benchmark, rounds, f"packed Conv {name}, given buffer", obj, lambda: obj.unpack()[0], {"torch": goal})


def test_conv_from_cold_caches(benchmark, rounds, generator):
    """Source and result lie in memory, as they do when a model is converted once."""
    obj = Q.conv2d_prepack(per_channel((512, 512, 3, 3), generator), None, [1, 1], [1, 1], [1, 1], 1)
    elsewhere = torch.zeros(64 << 20, dtype=torch.int8)
    name = "packed Conv 512x512x3x3, groups 1, given buffer, cold caches"
    compare(benchmark, rounds, name, obj, lambda: obj.unpack()[0], {}, before=lambda: elsewhere.add_(1))


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.quint8), (4, torch.quint4x2)])
def test_embedding(benchmark, quick, rounds, generator, bits, dtype):
    rows = 2000 if quick else 100_000
    scale, zero_point = torch.rand(rows, generator=generator) + 0.1, torch.rand(rows, generator=generator)
    q = torch.quantize_per_channel(torch.randn(rows, 128, generator=generator), scale, zero_point, 0, dtype)
    obj = Q.embedding_bag_prepack(q)
    name = f"packed {bits}-bit embedding {rows} x 128, given buffer"
    compare(benchmark, rounds, name, obj, lambda: Q.embedding_bag_unpack(obj), {"torch": 5}, bits=bits)
