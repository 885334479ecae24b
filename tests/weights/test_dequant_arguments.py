"""What ``qdeq.dequantize`` takes and refuses, and how it lives with threads, forks and large tensors."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

import qdeq
from qdeq.weights import native as ops
from qdeq.weights.weight import reference
from tests.helpers.tensors import (
    INT_DTYPES,
    RANGES,
    SUB_BYTE_DTYPES,
    assert_same_bits,
    random_quantized,
    random_scales,
)

BAD_SCALES = [float("nan"), float("inf"), 0.0, -1.0, 1e39, 1e-310]


@pytest.mark.parametrize("value", BAD_SCALES)
def test_bad_scales_are_refused_and_named(value):
    scales = torch.full((5,), 0.5, dtype=torch.float64)
    scales[3] = value
    ints = torch.arange(10, dtype=torch.int8).view(5, 2)
    q = torch._make_per_channel_quantized_tensor(ints, scales, torch.zeros(5, dtype=torch.int64), 0)
    with pytest.raises(qdeq.QdeqValueError, match="channel 3"):
        qdeq.dequantize(q)
    with pytest.raises(qdeq.QdeqValueError, match="channel 3"):
        qdeq.unpack(q).dequantize()
    assert_same_bits(qdeq.dequantize(q, allow_bad_scales=True), q.dequantize())
    per_tensor = torch._make_per_tensor_quantized_tensor(ints, value, 0)
    with pytest.raises(qdeq.QdeqValueError, match="positive and finite"):
        qdeq.dequantize(per_tensor)
    assert_same_bits(qdeq.dequantize(per_tensor, allow_bad_scales=True), per_tensor.dequantize())


def test_denormal_scales_are_fine():
    q = torch._make_per_tensor_quantized_tensor(torch.arange(-9, 9, dtype=torch.int8), 1e-44, 3)
    assert_same_bits(qdeq.dequantize(q), q.dequantize())
    assert qdeq.dequantize(q).count_nonzero() > 0


def bad_outs(q):
    shape = q.shape
    yield "shape", torch.empty(shape[0], shape[1] + 1), qdeq.QdeqValueError
    yield "dtype", torch.empty(shape, dtype=torch.float64), qdeq.QdeqValueError
    yield "dtype", torch.empty(shape, dtype=torch.bfloat16), qdeq.QdeqValueError
    yield "on cpu", torch.empty(shape, device="meta"), qdeq.QdeqValueError
    yield "requires? grad", torch.empty(shape, requires_grad=True), qdeq.QdeqValueError
    yield "negated view", torch.zeros(shape, dtype=torch.complex64).conj().imag, qdeq.QdeqValueError
    yield "overlap", torch.empty(1, shape[1]).expand(shape), qdeq.QdeqValueError
    yield "overlap", torch.empty(100).as_strided(shape, (2, 1)), qdeq.QdeqValueError
    yield "a tensor", [1.0], qdeq.QdeqTypeError
    yield "dense", torch.empty(shape).to_sparse(), qdeq.QdeqValueError
    yield "dense", q, qdeq.QdeqValueError


def test_bad_out_is_refused():
    q = torch._make_per_tensor_quantized_tensor(torch.zeros((4, 6), dtype=torch.int8), 0.5, 0)
    for text, out, kind in bad_outs(q):
        for source in (q, qdeq.unpack(q)):
            with pytest.raises(kind, match=f"out: expected.*{text}"):
                qdeq.dequantize(source, out=out)


def test_out_that_shares_memory_is_refused():
    memory = torch.zeros(64, dtype=torch.float32)
    ints = torch.empty(0, dtype=torch.int8).set_(memory.untyped_storage(), 128, (8, 8), (8, 1))
    w = qdeq.QuantizedWeight(
        ints, torch.tensor(0.5, dtype=torch.float64), torch.tensor(0), None, "per_tensor_affine", "qint8", (8, 8)
    )
    with pytest.raises(qdeq.QdeqValueError, match="memory of its own"):
        w.dequantize(out=memory.view(8, 8))
    assert torch.equal(w.dequantize(out=torch.empty(8, 8)), torch.zeros(8, 8))


def test_the_short_way_takes_plain_tensors_only(generator):
    """What is not plain memory, or might be an error, goes to the operators."""
    q = random_quantized((4, 6), torch.qint8, 0, generator)
    assert ops.dequantize_direct(q, None) is not None
    image = random_quantized((2, 3, 4, 5), torch.qint8, 0, generator).contiguous(memory_format=torch.channels_last)
    for source, out in [
        (q, torch.zeros((4, 6), dtype=torch.complex64).conj().imag),
        (q, torch.empty(6, 4).t()),
        (q, torch.empty(4, 6, requires_grad=True)),
        (q, torch.empty(4, 6, dtype=torch.float64)),
        (q, torch.empty(24)),
        (q, [1.0]),
        (image, None),
        (torch.zeros(4, 6), None),
        ("q", None),
    ]:
        assert ops.dequantize_direct(source, out) is None


def test_default_dtype_and_device_do_not_matter(generator):
    q = random_quantized((4, 6), torch.qint8, 0, generator)
    want = q.dequantize()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert_same_bits(qdeq.dequantize(q), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_bad_arguments():
    q = torch._make_per_tensor_quantized_tensor(torch.zeros((4, 6), dtype=torch.int8), 0.5, 0)
    for bad in (torch.float64, torch.int8, "float32", None):
        with pytest.raises(qdeq.QdeqValueError, match="dtype"):
            qdeq.dequantize(q, dtype=bad)
        with pytest.raises(qdeq.QdeqValueError, match="dtype"):
            qdeq.unpack(q).dequantize(dtype=bad)
    with pytest.raises(qdeq.QdeqTypeError, match="float tensor has nothing"):
        qdeq.dequantize(torch.zeros(3))


def test_zero_points_out_of_range_are_refused():
    ints = torch.zeros((2, 2), dtype=torch.int8)
    q = torch._make_per_channel_quantized_tensor(ints, torch.ones(2).double(), torch.tensor([0, 200]), 0)
    with pytest.raises(RuntimeError):
        q.dequantize()
    with pytest.raises(qdeq.QdeqValueError, match="zero points from -128 to 127"):
        qdeq.dequantize(q)


def test_sub_byte_views_are_refused():
    q = random_quantized((8, 16), torch.quint4x2, None, torch.Generator().manual_seed(0))
    with pytest.raises(qdeq.QdeqValueError, match="whole contiguous quint4x2"):
        qdeq.dequantize(q[2:4])


def test_result_is_a_plain_leaf(generator):
    result = qdeq.dequantize(random_quantized((4, 6), torch.qint8, 0, generator))
    assert result.is_leaf
    assert not result.requires_grad
    assert torch.nn.Parameter(result).requires_grad


def test_reference_is_torch(generator):
    for dtype in INT_DTYPES + SUB_BYTE_DTYPES:
        for axis in (None, 0, 1):
            q = random_quantized((9, 35), dtype, axis, generator, true_double=True)
            assert_same_bits(reference(qdeq.unpack(q)), q.dequantize(), (dtype, axis))


def test_threads_do_not_change_bits(generator):
    q = random_quantized((1000, 1003), torch.qint8, 0, generator, true_double=True)
    want = q.dequantize()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            assert_same_bits(qdeq.dequantize(q), want, threads)
    finally:
        torch.set_num_threads(before)


def test_a_forked_child_does_not_hang():
    """After a parallel region, OpenMP in a forked child waits for ever: the child must work on one thread."""
    code = """
        import os, signal, torch, qdeq
        q = torch._make_per_tensor_quantized_tensor(torch.ones((2000, 2000), dtype=torch.int8), 0.5, 0)
        torch.set_num_threads(2)
        assert qdeq.dequantize(q)[0, 0] == 0.5
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if qdeq.dequantize(q)[-1, -1] == 0.5 else 3)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], timeout=600, check=False)
    assert done.returncode == 0


def test_ranges_match_torch():
    for dtype in INT_DTYPES:
        storage = {torch.qint8: torch.int8, torch.quint8: torch.uint8, torch.qint32: torch.int32}[dtype]
        assert RANGES[dtype] == (torch.iinfo(storage).min, torch.iinfo(storage).max)


def test_compile_of_a_function_that_takes_a_quantized_tensor(generator):
    """Torch has no fake quantized tensors: the graph may break here, the bits may not."""
    q = random_quantized((4, 6), torch.qint8, 0, generator)
    compiled = torch.compile(lambda x: qdeq.dequantize(x) * 2, backend="eager")
    assert_same_bits(compiled(q), q.dequantize() * 2)


def available_bytes():
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 0


@pytest.mark.slow
@pytest.mark.skipif(available_bytes() < 12 << 30, reason="needs 12 GB of free memory")
def test_more_than_2_to_the_31_elements(generator):
    """Offsets are 64 bits wide: packed 2-bit values to bfloat16, compared at the ends and in the middle."""
    cols = 1 << 16
    shape = (2**31 // cols + 3, cols)
    scale = random_scales(shape[0], generator, true_double=False).float()
    q = torch._empty_per_channel_affine_quantized(
        shape, scales=scale, zero_points=torch.ones(shape[0]), axis=0, dtype=torch.quint2x4
    )
    packed = torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage())
    packed.random_(0, 256, generator=generator)
    got = qdeq.dequantize(q, dtype=torch.bfloat16)
    rows = packed[: shape[0] * cols // 4].view(shape[0], cols // 4)
    for row in (0, 1, shape[0] // 2, shape[0] - 4, shape[0] - 1):
        values = (rows[row][:, None] >> torch.arange(0, 8, 2, dtype=torch.uint8)) & 3
        want = ((values.reshape(-1).float() - 1) * scale[row]).bfloat16()
        assert torch.equal(got[row], want), row
