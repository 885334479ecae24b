"""Codes with a grid of scales: every kernel against plain torch, and against values written down by hand."""

from __future__ import annotations

import math

import pytest
import torch

import qdeq
from qdeq import BlockWeight
from qdeq.weights.block_weight import block_reference, grid_shape
from qdeq.weights.blocks import float_block, weight_blocks
from qdeq.weights.codes import FLOAT8_TYPES, KINDS
from qdeq.words import dtype_name
from tests.files.released.folders import same

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Zero, subnormal, where products of e4m3 become subnormal or infinite, and where the table of mantissas ends.
EDGES = [0.0, -0.0, 2.0**-149, 2.0**-127, -3e-39, 2.0**-126, 2.0**-118, 2.0**-101, 2.0**-100, 1.3 * 2.0**-99, 1e-9,
         0.0123456, -0.0123456, 1.0, 65504 / 448, 1.1 * 2.0**99, 2.0**100, 2.0**101, 1.7 * 2.0**119, 2.0**120, -3.4e38,
         torch.finfo(torch.float32).max]  # fmt: skip


@pytest.fixture(params=qdeq.kernels())
def kernel(request):
    with qdeq.use_kernel(request.param):
        yield request.param


def weight(shape, block, *, values="float8_e4m3fn", scale=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if scale is None:
        scale = torch.randn(grid_shape(shape, block), generator=generator) * 0.01
    return BlockWeight(codes, values, scale, block, tuple(shape))


def assert_right(w):
    for dtype in DTYPES:
        assert same(w.dequantize(dtype=dtype), block_reference(w, dtype)), dtype


@pytest.mark.parametrize("rows", [1, 130], ids=["one row for each scale", "many rows for each scale"])
@pytest.mark.parametrize("values", [dtype_name(dtype) for dtype in FLOAT8_TYPES])
def test_every_code_with_every_kind_of_scale(kernel, values, rows):
    codes = torch.arange(256, dtype=torch.uint8).expand(rows * len(EDGES), 256).contiguous()
    assert_right(BlockWeight(codes, values, torch.tensor(EDGES)[:, None], (rows, 0), tuple(codes.shape)))


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((192, 256), (128, 128)),
        ((200, 300), (128, 128)),
        ((576, 256), (128, 128)),
        ((1000, 130), (128, 128)),
        ((130, 9001), (128, 128)),
        ((3, 130, 129), (1, 128, 128)),
        ((3, 5, 900), (2, 2, 128)),
        ((4, 3, 5), (0, 2, 0)),
        ((7, 333), (1, 0)),
        ((7, 333), (0, 0)),
        ((9, 64), (1, 32)),
        ((9, 70), (1, 3)),
        ((5,), (0,)),
        ((70,), (32,)),
        ((), ()),
        ((0, 4), (128, 128)),
        ((2, 0, 4), (1, 128, 128)),
    ],
    ids=str,
)
def test_blocks_of_every_shape(kernel, shape, block):
    assert_right(weight(shape, block))


def test_values_written_down_by_hand():
    codes = torch.tensor([[0x00, 0x80, 0x01, 0x38, 0x7E, 0xFE, 0x7F]], dtype=torch.uint8)
    w = BlockWeight(codes, "float8_e4m3fn", torch.tensor([[0.5]]), (0, 0), (1, 7))
    got = w.dequantize()[0].tolist()
    assert got[:6] == [0.0, 0.0, 2.0**-10, 0.5, 224.0, -224.0]
    assert math.copysign(1, got[1]) == -1
    assert math.isnan(got[6])


def test_the_product_is_rounded_to_float32_first_and_then_once(kernel):
    """Where the other order, or a rounding on the way, gives other values: else this would show nothing."""
    w = weight((512, 512), (64, 64), seed=5)
    values = w.codes.view(torch.float8_e4m3fn)
    scale = w.scale.repeat_interleave(64, 0).repeat_interleave(64, 1)
    got = w.dequantize(dtype=torch.bfloat16)
    assert same(got, (values.double() * scale.double()).float().bfloat16())
    assert not same(got, values.bfloat16() * scale.bfloat16())


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_large_results(kernel, threads):
    torch.set_num_threads(threads)
    assert_right(weight((515, 2000), (128, 128)))
    assert_right(weight((4000, 300), (1, 0)))


def test_exponents_as_scales():
    """2^(byte - 127); byte 0 is 2^-127, not 0."""
    exponents = torch.tensor([[0, 1], [120, 127], [128, 254]], dtype=torch.uint8)
    w = weight((3, 64), (1, 32), scale=exponents.view(torch.float8_e8m0fnu))
    wanted = w.codes.view(torch.float8_e4m3fn).double()
    powers = torch.tensor([[-127, -126], [-7, 0], [1, 127]], dtype=torch.float64).repeat_interleave(32, 1)
    assert same(w.dequantize(), (wanted * 2.0**powers).float())
    with pytest.raises(qdeq.QdeqValueError, match=r"finite scales, got nan at \(0, 0\)"):
        weight((1, 4), (0, 0), scale=torch.tensor([[255]], dtype=torch.uint8).view(torch.float8_e8m0fnu)).dequantize()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_scale_that_is_no_number_is_refused_by_its_place(bad):
    scale = torch.ones(2, 3)
    scale[1, 2] = bad
    w = BlockWeight(
        torch.zeros(130, 260, dtype=torch.uint8), "float8_e4m3fn", scale, (128, 128), (130, 260), origin="f: k"
    )
    with pytest.raises(qdeq.QdeqValueError, match=r"f: k: expected finite scales, got -?(nan|inf) at \(1, 2\)"):
        w.dequantize()


def test_given_buffers():
    w = weight((33, 50), (16, 16))
    out = torch.empty(33, 50, dtype=torch.bfloat16)
    assert qdeq.dequantize(w, out=out, dtype=torch.bfloat16) is out
    turned = torch.empty(50, 33).t()
    assert w.dequantize(out=turned) is turned
    assert same(turned.contiguous(), block_reference(w))
    for wrong, message in (
        (torch.empty(33, 49), "shape"),
        (torch.empty(33, 50, dtype=torch.float64), "dtype"),
        (w.scale.expand(1, *w.scale.shape), "shape"),
    ):
        with pytest.raises(qdeq.QdeqValueError, match=message):
            w.dequantize(out=wrong)
    memory = torch.zeros(256)
    over = BlockWeight(memory.view(torch.uint8)[:64].view(16, 4), "float8_e4m3fn", torch.ones(1, 1), (0, 0), (16, 4))
    with pytest.raises(qdeq.QdeqValueError, match="memory of its own"):
        over.dequantize(out=memory[8:72].view(16, 4))


def test_parts_are_those_of_the_whole():
    for shape, block in (((300, 40), (128, 16)), ((3, 130, 20), (1, 128, 8)), ((2, 3, 5000), (2, 2, 128)), ((), ())):
        w = weight(shape, block)
        whole = block_reference(w, torch.bfloat16)
        for elements in (1, 700, 6000, 1 << 20):
            indices = list(weight_blocks(w, elements))
            parts = [float_block(w, index, where="w", dtype=torch.bfloat16) for index in indices]
            assert all(same(part, whole[index]) for part, index in zip(parts, indices, strict=True))
            assert sum(part.numel() for part in parts) == whole.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": "float8_e8m0fnu"}, "values: expected one of"),
        ({"codes": torch.zeros(4, 6)}, "contiguous uint8 codes of shape 4x6"),
        ({"codes": torch.zeros(6, 4, dtype=torch.uint8).t()}, "contiguous uint8 codes of shape 4x6"),
        ({"block": (2,)}, "expected 2 sizes"),
        ({"block": (2, -1)}, "a tuple of sizes"),
        ({"block": (2, 2)}, r"a grid of shape \(2, 3\) for blocks of \(2, 2\)"),
        ({"scale": torch.ones(2, 2, dtype=torch.float64)}, "scale of"),
        ({"scale": 1.0}, "a tensor, got builtins.float"),
        ({"codes": torch.zeros(4, 6, dtype=torch.uint8, device="meta")}, "a dense tensor on the CPU"),
    ],
)
def test_fields_that_contradict_each_other(change, message):
    fields = {"codes": torch.zeros(4, 6, dtype=torch.uint8), "values": "float8_e4m3fn", "scale": torch.ones(2, 2),
              "block": (2, 3), "shape": (4, 6)}  # fmt: skip
    BlockWeight(**fields).dequantize()
    with pytest.raises(qdeq.QdeqError, match=message):
        BlockWeight(**{**fields, **change})


def test_the_operator_refuses_what_would_leave_its_memory():
    codes, values, out = torch.zeros(1, 4, 6, dtype=torch.uint8), torch.zeros(256), torch.zeros(1, 4, 6)
    scale, none = torch.ones(1, 2, 2), torch.empty(0)
    call, right = (
        torch.ops.qdeq.dequantize_codes_out,
        (codes, values, scale, none, [1, 4, 6], [2, 3], torch.float32, out),
    )
    call(*right)
    for at, wrong in (
        (0, codes.char()),
        (0, codes[:, :, :5].contiguous()),
        (0, codes[:, :3].contiguous()),
        (1, values[:255]),
        (1, values.double()),
        (2, scale[:, :1].contiguous()),
        (3, torch.ones(1, 2, 1)),
        (4, [1, 4, 7]),
        (5, [0, 3]),
        (6, torch.bfloat16),
        (7, out[:, :3].contiguous()),
    ):
        with pytest.raises(RuntimeError, match="qdeq"):
            call(*right[:at], wrong, *right[at + 1 :])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_code(kernel, name):
    """All codes, blocks that fit vectors or not, rows with padding, zero points, and a second factor of both kinds."""
    generator, bits = torch.Generator().manual_seed(len(name)), KINDS[name].bits
    draw = lambda high, shape: torch.randint(0, high, shape, dtype=torch.uint8, generator=generator)  # noqa: E731
    for shape, block in (((5, 208), (1, 16)), ((4, 128), (1, 32)), ((7, 333), (1, 0)), ((2, 20, 96), (1, 4, 24))):
        stored = (*shape[:-1], KINDS[name].row_bytes(shape[-1]) + (0 if bits == 8 else 3))
        grid = grid_shape(shape, block)
        scale = torch.where(draw(8, grid) == 0, torch.tensor(-(2.0**-126)), torch.rand(grid, generator=generator))
        zero = draw(16, grid).to(torch.int8) - 8
        for more in (
            {},
            {"zero": zero},
            {"factor": torch.tensor(3.7), "divides": True},
            {"factor": torch.tensor(3e-3)},
        ):
            assert_right(BlockWeight(draw(256, stored), name, scale, block, shape, **more))


def test_small_codes_written_down_by_hand():
    """0x21: code 1 before code 2. 4-bit floats 0.5 and 1; 8 is -0.0; integers less 8."""
    codes = torch.tensor([[0x21, 0xF8]], dtype=torch.uint8)
    one = torch.ones(1, 1)
    floats = BlockWeight(codes, "float4_e2m1", one, (1, 0), (1, 4)).dequantize()[0].tolist()
    assert floats == [0.5, 1.0, -0.0, -6.0]
    assert math.copysign(1, floats[2]) == -1
    assert BlockWeight(codes, "int4_excess", one, (1, 0), (1, 4)).dequantize().tolist() == [[-7.0, -6.0, 0.0, 7.0]]
    assert BlockWeight(codes, "int8", one, (1, 0), (1, 2)).dequantize().tolist() == [[33.0, -8.0]]
    three = torch.tensor([[0b10001000, 0b00000110]], dtype=torch.uint8)  # 0 1 2 3 from low bits on, then padding
    assert BlockWeight(three, "int3_excess", one, (1, 0), (1, 4)).dequantize().tolist() == [[-4.0, -3.0, -2.0, -1.0]]


def test_factors_of_experts():
    codes = torch.arange(3 * 2 * 32, dtype=torch.uint8).view(3, 2, 32)
    w = BlockWeight(codes, "float4_e2m1", torch.rand(3, 2, 4), (1, 1, 16), (3, 2, 64), factor=torch.rand(3, 1, 1))
    for elements in (64, 1 << 20):
        parts = [float_block(w, index, where="w", dtype=torch.float32) for index in weight_blocks(w, elements)]
        assert same(torch.cat([part.reshape(-1) for part in parts]), block_reference(w).reshape(-1))
