"""Packed weights against torch's unpack() and dequantize(), bit for bit, read in place and through unpack()."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import qdeq
from qdeq.weights import packed
from qdeq.weights.packed_state import unpack_with_torch
from tests.helpers.native import load_operators
from tests.weights.packed import cases

pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
ENGINES = [name for name in torch.backends.quantized.supported_engines if name != "none"]
CASES = 40


@pytest.fixture(params=["in place", "unpack()"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "unpack()":
        monkeypatch.setattr(packed.ops, "why_not_in_place", lambda: "taken away by a test")
    else:
        facts = qdeq.build_info()  # this package is tested with the torch that it was built with
        assert facts["packed_in_place"], facts["packed_in_place_why_not"]
    return str(request.param)


def assert_bits(result: Tensor, expected: Tensor) -> None:
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    width = torch.int32 if result.dtype == torch.float32 else torch.int16
    assert torch.equal(result.contiguous().view(width), expected.contiguous().view(width))


def nan_strided(rng: random.Random, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """NaN in a random order of dimensions, some of them with gaps between their elements."""
    order = list(range(len(shape)))
    rng.shuffle(order)
    padded = [shape[dim] + rng.choice([0, 0, 3]) for dim in order]
    whole = torch.full(padded, float("nan"), dtype=dtype).permute([order.index(dim) for dim in range(len(shape))])
    return whole[tuple(slice(size) for size in shape)]


def layout_name(obj: Any) -> str:
    return str(packed._native().layout(obj)[0])


def check(rng: random.Random, obj: Any) -> None:
    unpacked = unpack_with_torch(obj, "test")[0]
    reference = unpacked.dequantize()
    fresh = packed.dequantize_packed(obj, where="test")
    assert_bits(fresh, reference)
    assert fresh.stride() == reference.stride()
    for dtype in (torch.float32, rng.choice([torch.bfloat16, torch.float16])):
        out = nan_strided(rng, reference.shape, dtype)
        assert packed.dequantize_packed(obj, where="test", out=out, dtype=dtype) is out
        assert_bits(out, reference.to(dtype))
        assert_bits(packed.dequantize_packed(obj, where="test", dtype=dtype), reference.to(dtype))
    contiguous = torch.full(reference.shape, float("nan"))
    assert_bits(packed.dequantize_packed(obj, where="test", out=contiguous), reference)
    weight = packed.unpack_packed(obj, where="test")
    assert torch.equal(weight.int_repr, unpacked.int_repr())
    assert_bits(weight.dequantize(), reference)
    assert weight.dequantize().stride() == reference.stride()


MAKERS: list[tuple[str, Callable[[random.Random], Any]]] = [
    ("linear", cases.random_linear),
    *((f"conv{dims}d", lambda rng, dims=dims: cases.random_conv(rng, dims)) for dims in (1, 2, 3)),
    *((f"conv_transpose{dims}d", lambda rng, dims=dims: cases.random_transposed_conv(rng, dims)) for dims in (1, 2, 3)),
]


@pytest.mark.parametrize("kernel", qdeq.kernels())
@pytest.mark.parametrize(("family", "make"), MAKERS, ids=[name for name, _ in MAKERS])
def test_fbgemm_bits(way: str, kernel: str, family: str, make: Callable[[random.Random], Any]) -> None:
    with cases.engine("fbgemm"), qdeq.use_kernel(kernel):
        for seed in range(CASES):
            try:
                check(random.Random(f"{family} {seed}"), make(random.Random(seed)))
            except BaseException:
                print(f"{family}, seed {seed}")
                raise


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "fbgemm"])
@pytest.mark.parametrize("family", ["linear", "conv2d", "conv_transpose2d"])
def test_other_engines_bits(way: str, engine: str, family: str) -> None:
    with cases.engine(engine):
        for seed in range(10):
            rng = random.Random(seed)
            scale, shape = rng.random() + 0.1, (rng.randint(1, 40), rng.randint(1, 40))
            if family != "linear":
                shape += (3, 3)
            # onednn takes a zero point of 0 only
            q = torch.quantize_per_tensor(torch.randn(shape), scale, 0, torch.qint8)
            pair, zero = [1, 1], [0, 0]
            if family == "linear":
                obj = cases.Q.linear_prepack(q, None)
            elif family == "conv2d":
                obj = cases.Q.conv2d_prepack(q, None, pair, zero, pair, 1)
            else:
                obj = cases.Q.conv_transpose2d_prepack(q, None, pair, zero, zero, pair, 1)
            check(rng, obj)


def test_every_packing_of_fbgemm_is_read_in_place() -> None:
    """The random shapes reach all of them: otherwise the comparison above proves little."""
    seen = set()
    with cases.engine("fbgemm"):
        for family, make in MAKERS:
            for seed in range(CASES):
                obj = make(random.Random(seed))
                seen.add(layout_name(obj))
                # Without its bias at hand a model's layer is unpacked all the same.
                assert packed._native().bias(obj)[0], family
    assert seen == {"linear", "im2col", "pointwise", "depthwise", "groupwise"}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("channels", "copies"), [(8, 1), (24, 2), (32, 1), (40, 1), (520, 2)])
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_depthwise_remainders(per_channel: bool, channels: int, copies: int, kernel: int) -> None:
    """Rows around the 32 of a block; taps 9, 25, 49, 27, 125, 343 leave 1, 1, 1, 3, 1, 3 over."""
    rng = random.Random(channels * kernel)
    with cases.engine("fbgemm"):
        for dims, prepack in ((2, cases.Q.conv2d_prepack), (3, cases.Q.conv3d_prepack)):
            shape = (channels * copies, 1, *[kernel] * dims)
            q = cases.random_quantized(rng, shape, per_channel=per_channel)
            obj = prepack(q, None, [1] * dims, [kernel // 2] * dims, [1] * dims, channels)
            assert layout_name(obj) == "depthwise"
            check(rng, obj)


@pytest.mark.slow
def test_larger_than_the_cache(way: str) -> None:
    """Results larger than the last-level cache take other stores, unaligned rows included."""
    cache = int(str(qdeq.build_info()["last_level_cache_bytes"])) or 32 << 20
    cols = 4099
    rows = cache // 4 // cols + 50
    q = cases.random_quantized(random.Random(0), (rows, cols), per_channel=True)
    with cases.engine("fbgemm"):
        obj = cases.Q.linear_prepack(q, None)
    reference = obj.unpack()[0].dequantize()
    assert_bits(packed.dequantize_packed(obj, where="test"), reference)
    shifted = torch.full((rows * cols + 1,), float("nan"))[1:].view(rows, cols)
    assert_bits(packed.dequantize_packed(obj, where="test", out=shifted), reference)


@pytest.fixture(scope="module")
def linear_packed() -> Callable[..., Any]:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    load_operators(Path(__file__).with_name("other_blocking.cpp"))
    return torch.ops.qdeq_test.linear_packed


@pytest.mark.slow
@pytest.mark.parametrize("kernel", qdeq.kernels())
@pytest.mark.parametrize("blocking", [(512, 8), (512, 48), (256, 32), (512, 16), (128, 24), (64, 4), (4, 2)], ids=str)
def test_blockings_of_other_machines(linear_packed: Any, kernel: str, blocking: tuple[int, int]) -> None:
    """(columns, rows) of a block: AVX2, AVX-512 VNNI, AVX-512, and some that no machine uses."""
    assert qdeq.build_info()["packed_in_place"]
    rng = random.Random(str(blocking))
    for _ in range(12):
        rows, cols = (rng.choice([rng.randint(1, 100), rng.randint(1, 1100), blocking[0] + 1]) for _ in range(2))
        weight = torch.randint(-128, 128, (rows, cols), dtype=torch.int8)
        obj = linear_packed(weight, *blocking)
        reference = (weight.int() - 3).float() * 0.25
        with qdeq.use_kernel(kernel):
            assert_bits(qdeq.dequantize(obj), reference)
            out = nan_strided(rng, reference.shape, torch.float32)
            assert_bits(qdeq.dequantize(obj, out=out), reference)
            assert torch.equal(qdeq.unpack(obj).int_repr, weight)


@pytest.mark.parametrize("kernel", qdeq.kernels())
@pytest.mark.parametrize("dtype", [torch.quint8, torch.quint4x2])
def test_embeddings(way: str, kernel: str, dtype: torch.dtype) -> None:
    with qdeq.use_kernel(kernel):
        for seed in range(20):
            rng = random.Random(seed)
            rows, cols = rng.randint(1, 70), 2 * rng.randint(1, 70)
            scale, zero_point = torch.rand(rows) + 1e-3, torch.randn(rows)
            q = torch.quantize_per_channel(torch.randn(rows, cols), scale, zero_point, 0, dtype)
            obj = cases.Q.embedding_bag_prepack(q)
            assert way == "unpack()" or layout_name(obj) == "embedding"
            reference = cases.Q.embedding_bag_unpack(obj).dequantize()
            assert_bits(reference, q.dequantize())
            assert_bits(qdeq.dequantize(obj), reference)
            assert qdeq.dequantize(obj).stride() == reference.stride()
            for out_dtype in (torch.float32, torch.bfloat16, torch.float16):
                out = nan_strided(rng, reference.shape, out_dtype)
                assert_bits(qdeq.dequantize(obj, out=out, dtype=out_dtype), reference.to(out_dtype))
            assert_bits(qdeq.unpack(obj).dequantize(), reference)
