"""Plain quantized tensors: the large layer of VGG11, every layout and dtype, small tensors, sizes, threads."""

from __future__ import annotations

import importlib.util

import pytest
import torch

import qdeq
from benchmarks import peers
from benchmarks.harness import LIMITS, Case, assert_same_bits, calls_for, limits_given, measure
from qdeq.words import dtype_name

VECTOR_KERNELS = [name for name in qdeq.kernels() if name != "scalar"] or ["scalar"]
NEEDS = {"ONNX Runtime": "onnxruntime", "OpenVINO": "openvino", "numexpr": "numexpr"}


@pytest.fixture
def large(quick):
    """Shape of VGG11's first classifier weight; quick: above the caches, no more."""
    return (512, 25088) if quick else (4096, 25088)


def make(shape, generator, *, axis=0, dtype=torch.int8, true_double=False):
    info = torch.iinfo(dtype)
    ints = torch.randint(info.min, info.max + 1, shape, dtype=dtype, generator=generator)
    scale = torch.rand(shape[axis], generator=generator, dtype=torch.float64) * 0.01 + 0.001
    scale = scale if true_double else scale.float().double()
    low, high = (0, 255) if dtype == torch.uint8 else (-128, 127)
    zero_point = torch.randint(low, high + 1, (shape[axis],), generator=generator)
    return torch._make_per_channel_quantized_tensor(ints, scale, zero_point, axis)


def touched(shape, dtype=torch.float32):
    """Memory whose page faults are behind it."""
    return torch.ones(shape, dtype=dtype)


@pytest.mark.parametrize("kernel", VECTOR_KERNELS)
def test_large_given_buffer(benchmark, large, rounds, generator, kernel, quick):
    q = make(large, generator)
    w, out = qdeq.unpack(q), touched(large)
    want = q.dequantize()
    parts = (w.int_repr, w.scale, w.zero_point, 0, out)
    others = {"torch": q.dequantize}
    for name, build in peers.ALL.items():
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            print(f"{name} is not installed: left out")
            continue
        if quick and name == "torch.compile":
            print("torch.compile takes longer to compile than the quick run: left out")
            continue
        call = build(*parts)
        call()
        # OpenVINO folds the zero point into a fused multiply-add, which rounds differently.
        assert torch.allclose(out, want, rtol=1e-5, atol=1e-5), name
        others[name if torch.equal(out, want) else f"{name} (other bits)"] = call
    with qdeq.use_kernel(kernel):
        assert_same_bits(qdeq.dequantize(q, out=out), want)
        goal = {"torch": 15, "ONNX Runtime": 1.5, "bare loop": 1.05}
        case = Case(
            f"int8 per channel {large[0]} x {large[1]}, given buffer, {kernel}",
            lambda: qdeq.dequantize(q, out=out),
            others,
            limits_given(out, out.numel()),
            out.nbytes,
            goal,
        )
        measure(benchmark, case, rounds=rounds)


def test_large_fresh(benchmark, large, rounds, generator):
    q = make(large, generator)
    want = q.dequantize()
    assert_same_bits(qdeq.dequantize(q), want)
    limits = {"fresh memset": lambda: LIMITS.fresh_memset(want.nbytes)}
    case = Case(
        f"int8 per channel {large[0]} x {large[1]}, fresh result",
        lambda: qdeq.dequantize(q),
        {"torch": q.dequantize},
        limits,
        want.nbytes,
        {"torch": 5, "fresh memset": 1.2},
    )
    measure(benchmark, case, rounds=rounds)


def test_threads(benchmark, large, rounds, generator):
    """One thread and all of them in turn: on one thread a core may already fill the memory's bandwidth."""
    q = make(large, generator)
    want, out = q.dequantize(), touched(large)
    threads = torch.get_num_threads()

    def with_threads(count, call):
        def run():
            torch.set_num_threads(count)
            call()
            torch.set_num_threads(threads)

        return run

    ours = lambda: qdeq.dequantize(q, out=out)  # noqa: E731
    with_threads(1, ours)()
    assert_same_bits(out, want)
    limits = limits_given(out, out.numel())
    limits["bare loop, 1 thread"] = with_threads(1, limits["bare loop"])
    case = Case(
        f"int8 per channel, {threads} threads",
        with_threads(threads, ours),
        {"torch": q.dequantize, "1 thread": with_threads(1, ours)},
        limits,
        out.nbytes,
        {"1 thread": 1},
    )
    measure(benchmark, case, rounds=2 * rounds + 1)


def run_layout(benchmark, rounds, q, name, goal, dtype=torch.float32):
    want = q.dequantize().to(dtype)
    out = torch.empty_strided(want.shape, want.stride(), dtype=dtype).fill_(1)
    assert_same_bits(qdeq.dequantize(q, out=out, dtype=dtype), want)
    limits = limits_given(out, q.untyped_storage().nbytes())
    others = {"torch": q.dequantize if dtype == torch.float32 else lambda: q.dequantize().to(dtype)}
    call = lambda: qdeq.dequantize(q, out=out, dtype=dtype)  # noqa: E731
    measure(benchmark, Case(name, call, others, limits, out.nbytes, goal), rounds=rounds)


def test_true_double_scales(benchmark, large, rounds, generator):
    q = make(large, generator, true_double=True)
    run_layout(benchmark, rounds, q, "true double scales, given buffer", {"torch": 6})


def test_last_axis(benchmark, large, rounds, generator):
    run_layout(benchmark, rounds, make(large, generator, axis=1), "per channel on the last axis", {"torch": 5})


def test_channels_last(benchmark, rounds, generator, quick):
    shape = (512, 2048, 3, 3) if quick else (1024, 2048, 3, 3)
    q = make(shape, generator).contiguous(memory_format=torch.channels_last)
    run_layout(benchmark, rounds, q, "channels_last conv weight, axis 0", {"torch": 5})


def test_inner_axis(benchmark, rounds, generator, quick):
    shape = (1024, 1024, 3, 3) if quick else (1024, 2048, 3, 3)
    run_layout(benchmark, rounds, make(shape, generator, axis=1), "transposed-conv weight, axis 1", {"torch": 5})


def test_transposed(benchmark, large, rounds, generator):
    ints = torch.randint(-128, 128, large[::-1], dtype=torch.int8, generator=generator)
    q = torch._make_per_tensor_quantized_tensor(ints, 0.01, 3).t()
    run_layout(benchmark, rounds, q, "transposed view, per tensor", {"torch": 5})


@pytest.mark.parametrize("kind", ["quint8", "qint32"])
def test_other_integers(benchmark, large, rounds, generator, kind):
    q = make(large, generator, dtype={"quint8": torch.uint8, "qint32": torch.int32}[kind])
    run_layout(benchmark, rounds, q, f"{kind} per channel", {"torch": 5})


def test_per_tensor(benchmark, large, rounds, generator):
    ints = torch.randint(-128, 128, large, dtype=torch.int8, generator=generator)
    run_layout(
        benchmark, rounds, torch._make_per_tensor_quantized_tensor(ints, 0.01, 3), "int8 per tensor", {"torch": 1}
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision(benchmark, large, rounds, generator, dtype):
    name = f"int8 per channel to {dtype_name(dtype)}"
    run_layout(benchmark, rounds, make(large, generator), name, {"torch": 5}, dtype)


@pytest.mark.parametrize("dtype", [torch.quint4x2, torch.quint2x4], ids=["quint4x2", "quint2x4"])
def test_sub_byte(benchmark, rounds, generator, dtype, quick):
    shape = (20_000 if quick else 100_000, 128)
    scale = torch.rand(shape[0], generator=generator) * 0.01 + 0.001
    zero_point = torch.rand(shape[0], generator=generator) * 15
    q = torch._empty_per_channel_affine_quantized(shape, scales=scale, zero_points=zero_point, axis=0, dtype=dtype)
    packed = torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage())
    packed.copy_(torch.randint(0, 256, packed.shape, dtype=torch.uint8, generator=generator))
    name = f"{dtype_name(dtype)} {shape[0]} x {shape[1]}, given buffer"
    run_layout(benchmark, rounds, q, name, {"torch": 5})


@pytest.mark.parametrize("given", [False, True], ids=["fresh", "given"])
@pytest.mark.parametrize("scheme", ["per tensor", "per channel"])
@pytest.mark.parametrize("shape", [(256, 256), (64, 64, 3, 3)], ids=["256x256", "64x64x3x3"])
def test_small_whole_call(benchmark, generator, shape, scheme, given, quick):
    q = make(shape, generator)
    if scheme == "per tensor":
        q = torch._make_per_tensor_quantized_tensor(q.int_repr(), 0.01, 3)
    out = touched(shape)
    assert_same_bits(qdeq.dequantize(q), q.dequantize())
    ours = (lambda: qdeq.dequantize(q, out=out)) if given else (lambda: qdeq.dequantize(q))
    size = " x ".join(map(str, shape))
    name = f"{size} {scheme}, {'given buffer' if given else 'fresh'}, whole call"
    case = Case(name, ours, {"torch": q.dequantize}, {}, out.nbytes, {"torch": 1}, calls=50 if quick else 300)
    measure(benchmark, case, rounds=5 if quick else 15)


@pytest.mark.parametrize("log_bytes", [10, 14, 18, 20, 22, 24, 25, 26, 28, 30.6])
def test_cost_against_size(benchmark, rounds, generator, log_bytes, quick):
    """1 KB to 1.6 GB of result, in a given buffer."""
    if quick and log_bytes > 26:
        log_bytes = 26
    cols = 256
    shape = (max(1, int(2**log_bytes) // 4 // cols), cols)
    q = make(shape, generator)
    out = touched(shape)
    peer = {} if log_bytes > 30 else {"torch": q.dequantize}
    if peer:
        assert_same_bits(qdeq.dequantize(q, out=out), q.dequantize())
    else:  # torch's result beside ours would not fit small machines: compare in parts
        qdeq.dequantize(q, out=out)
        w = qdeq.unpack(q)
        for rows in torch.arange(shape[0]).split(shape[0] // 8 + 1):
            a, b = int(rows[0]), int(rows[-1]) + 1
            part = torch._make_per_channel_quantized_tensor(w.int_repr[a:b], w.scale[a:b], w.zero_point[a:b], 0)
            assert_same_bits(out[a:b], part.dequantize())
    ints = qdeq.unpack(q).int_repr
    case = Case(
        f"size {out.nbytes} bytes, given buffer",
        lambda: qdeq.dequantize(q, out=out),
        peer,
        {"bare loop": lambda: LIMITS.bare_loop(ints, out)},
        out.nbytes,
        calls=calls_for(out.nbytes),
    )
    measure(benchmark, case, rounds=rounds)
