"""dequantize() against torch's own, bit for bit, in every kernel set that runs here."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qdeq
from qdeq.weights import native as ops
from qdeq.weights.weight import reference
from tests.helpers.tensors import (
    INT_DTYPES,
    RANGES,
    SUB_BYTE_DTYPES,
    assert_same_bits,
    random_integers,
    random_quantized,
    random_scales,
)

KERNELS = qdeq.kernels()
# Every size up to a few AVX-512 vectors, and sizes around the unrolled loops and the staging buffers.
SIZES = [*range(70), 127, 128, 129, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097, 8193]


@pytest.fixture(params=KERNELS)
def kernel(request):
    with qdeq.use_kernel(request.param):
        yield request.param


@pytest.fixture
def generator(request):
    seed = (
        hash(request.node.nodeid) % 2**31
        if os.environ.get("QDEQ_TEST_SEED") is None
        else int(os.environ["QDEQ_TEST_SEED"])
    )
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def check(q, what=""):
    want = q.dequantize()
    assert_same_bits(qdeq.dequantize(q), want, what)
    weight = qdeq.unpack(q)
    assert_same_bits(weight.dequantize(), want, what)
    # Memory around out stays as it was: nothing is written past either end.
    guarded = torch.full((q.numel() + 64,), 7.0)
    out = guarded[32 : 32 + q.numel()].as_strided(want.shape, want.stride(), 32)
    assert qdeq.dequantize(q, out=out) is out
    assert_same_bits(out, want, what)
    assert (guarded[:32] == 7).all()
    assert (guarded[32 + q.numel() :] == 7).all()


@pytest.mark.parametrize("dtype", INT_DTYPES + SUB_BYTE_DTYPES, ids=str)
def test_every_size_per_tensor(kernel, dtype, generator):
    for size in SIZES:
        check(random_quantized((size,), dtype, None, generator, true_double=size % 2 == 1), (dtype, size))


@pytest.mark.parametrize("true_double", [False, True], ids=["float32-scales", "double-scales"])
@pytest.mark.parametrize("dtype", INT_DTYPES, ids=str)
def test_every_row_length_per_channel(kernel, dtype, true_double, generator):
    for size in SIZES:
        q = random_quantized((3, size), dtype, 0, generator, true_double=true_double)
        check(q, (dtype, size, "rows"))
        q = random_quantized((size,), dtype, 0, generator, true_double=true_double)
        check(q, (dtype, size, "elements"))


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, *SUB_BYTE_DTYPES], ids=str)
def test_float_qparams(kernel, dtype, generator):
    for size in SIZES[::3]:
        check(random_quantized((3, size), dtype, 0, generator, float_qparams=True), (dtype, size))
        check(random_quantized((5, size + 1), dtype, 1, generator, float_qparams=True), (dtype, size))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_random_shapes_axes_and_layouts(data):
    shape = tuple(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5), label="shape"))
    axis = data.draw(st.sampled_from([None, *range(len(shape))]), label="axis")
    dtype = data.draw(st.sampled_from(INT_DTYPES), label="dtype")
    true_double = data.draw(st.booleans(), label="true double scales")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6), label="seed"))
    q = random_quantized(shape, dtype, axis, generator, true_double=true_double)
    if len(shape) in (4, 5) and (axis is None or axis < 2) and data.draw(st.booleans(), label="channels_last"):
        q = q.contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d)
    elif axis is None and data.draw(st.booleans(), label="permuted"):
        q = q.permute(data.draw(st.permutations(range(len(shape)))))
    for name in KERNELS:
        with qdeq.use_kernel(name):
            check(q, name)


@pytest.mark.parametrize("dtype", INT_DTYPES, ids=str)
def test_views(kernel, dtype, generator):
    q = random_quantized((70, 300), dtype, None, generator)
    views = [q.t(), q[3:50, 7:280], q[::2, ::3], q[5], q[:, 4], q.unsqueeze(1).expand(70, 3, 300), q[:0], q[0, 0]]
    for index, view in enumerate(views):
        check(view, index)


def test_per_channel_views_through_integers(kernel, generator):
    """Torch refuses to transpose a per channel tensor; its integers may have any strides."""
    q = random_quantized((70, 300), torch.qint8, 0, generator, true_double=True)
    with pytest.raises(RuntimeError):
        q.t()
    w = qdeq.unpack(q)
    turned = qdeq.QuantizedWeight(w.int_repr.t(), w.scale, w.zero_point, 1, w.qscheme, w.dtype, (300, 70))
    assert_same_bits(turned.dequantize(), q.dequantize().t().contiguous())


def test_transposed_tiles(kernel, generator):
    for shape in [(16, 16), (64, 256), (65, 257), (129, 515), (15, 1000), (1000, 15)]:
        for dtype in INT_DTYPES:
            check(random_quantized(shape, dtype, None, generator).t(), (shape, dtype))


def test_out_of_any_strides(kernel, generator):
    for dtype, axis in [(torch.qint8, 1), (torch.qint32, None), (torch.quint8, 0), (torch.qint8, 3)]:
        q = random_quantized((3, 5, 33, 7), dtype, axis, generator, true_double=True)
        want = q.dequantize()
        wide = torch.full((3, 5, 33, 14), 7.0)
        outs = [
            torch.empty((7, 33, 5, 3)).permute(3, 2, 1, 0),
            torch.empty((3, 5, 33, 7)).contiguous(memory_format=torch.channels_last),
            wide[..., ::2],
        ]
        for out_dtype in (torch.float32, torch.bfloat16, torch.float16):
            for out in outs:
                result = out if out_dtype == torch.float32 else torch.empty_like(out, dtype=out_dtype)
                strides = result.stride()
                assert qdeq.dequantize(q, out=result, dtype=out_dtype) is result
                assert result.stride() == strides
                assert torch.equal(result, want.to(out_dtype))
        assert (wide[..., 1::2] == 7).all()


def test_sub_byte_out_of_any_strides(kernel, generator):
    for dtype in SUB_BYTE_DTYPES:
        q = random_quantized((37, 129), dtype, 0, generator)
        out = torch.empty((129, 37)).t()
        assert torch.equal(qdeq.dequantize(q, out=out), q.dequantize())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_to_nearest_even(kernel, dtype, generator):
    for q in [
        random_quantized((5, 1001), torch.qint8, 0, generator, true_double=True),
        random_quantized((5, 1001), torch.qint32, None, generator),
        random_quantized((1001,), torch.quint8, 0, generator),
        random_quantized((33, 65), torch.quint8, None, generator).t(),
    ]:
        assert_same_bits(qdeq.dequantize(q, dtype=dtype), q.dequantize().to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_of_special_values(kernel, dtype):
    """Ties, denormals, overflow, infinity and NaN, each as one channel's scale."""
    specials = torch.tensor(
        [
            *(1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65504, 65519.996, 65520, 65536, 2**-14, 2**-24),
            *(2**-25, 3 * 2**-25, 5 * 2**-25, 2**-25 * (1 + 2**-20), 2**-26, 6.1e-5, 1e-45, 3.4e38),
            *(float("inf"), float("nan")),
        ],
        dtype=torch.float64,
    ).float()
    scale = specials.double()
    ints = torch.ones((len(scale), 67), dtype=torch.int8)
    q = torch._make_per_channel_quantized_tensor(ints, scale, torch.zeros(len(scale), dtype=torch.int64), 0)
    got = qdeq.dequantize(q, dtype=dtype, allow_bad_scales=True)
    assert_same_bits(got, q.dequantize().to(dtype))


def test_float32_only_arithmetic_would_be_wrong():
    """The case that a float32 kernel gets wrong on 12-25 % of the values; the qint32 case where zero points round."""
    generator = torch.Generator().manual_seed(1)
    q = random_quantized((64, 512), torch.qint8, 0, generator, true_double=True)
    w = qdeq.unpack(q)
    wrong = (w.int_repr.float() - w.zero_point.float()[:, None]) * w.scale.float()[:, None]
    assert (wrong != q.dequantize()).float().mean() > 0.1
    q = random_quantized((4096,), torch.qint32, None, generator)
    w = qdeq.unpack(q)
    wrong = (w.int_repr.float() - w.zero_point.float()) * w.scale.float()
    assert (wrong != q.dequantize()).any()


@pytest.mark.parametrize("axis", [None, 0])
def test_large_results_written_past_the_caches(axis, generator):
    """Over the last-level cache: non-temporal stores, threads, huge pages; odd sizes and an odd out offset."""
    rows, cols = 1031, 12289
    assert rows * cols * 4 > qdeq.build_info()["last_level_cache_bytes"] > 0
    q = random_quantized((rows, cols), torch.qint8, axis, generator, true_double=False)
    want = q.dequantize()
    room = torch.full((rows * cols + 3,), 7.0)
    for name in KERNELS:
        with qdeq.use_kernel(name):
            assert_same_bits(qdeq.dequantize(q), want, name)
            room.fill_(7)
            out = room[1:-2].view(rows, cols)
            assert_same_bits(qdeq.dequantize(q, out=out), want, name)
            assert room[0] == 7
            assert (room[-2:] == 7).all()


def test_large_short_rows_and_layouts(generator):
    ints = random_integers((400_000, 27), torch.qint8, generator)
    scales = random_scales(400_000, generator, true_double=True)
    zero_points = torch.zeros(400_000, dtype=torch.int64)
    q = torch._make_per_channel_quantized_tensor(ints, scales, zero_points, 0)
    assert_same_bits(qdeq.dequantize(q), q.dequantize())
    turned = torch._make_per_tensor_quantized_tensor(ints, 0.01, 3).t()
    assert_same_bits(qdeq.dequantize(turned), turned.dequantize())
    assert_same_bits(qdeq.dequantize(turned, dtype=torch.bfloat16), turned.dequantize().bfloat16())


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
