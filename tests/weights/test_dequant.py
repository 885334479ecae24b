"""dequantize() against torch's own, bit for bit, in every kernel set that runs here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qdeq
from tests.helpers.tensors import (
    INT_DTYPES,
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
