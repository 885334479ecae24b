"""Weights behind DequantizeLinear: the bits of ONNX Runtime, whatever the integers, scales and axes are."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_graphs.models import dequantized, floated, model, node, onnx, random, run, same_bits, weights

INTEGERS = {"int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32, "int4": 4, "uint4": 4}
SHAPE = (6, 5, 3)  # odd rows: packed integers of one row end within a byte
TENSOR = onnx.TensorProto


def integers(kind: str, shape: tuple[int, ...], seed: int = 0, name: str = "q"):
    bits, signed = INTEGERS[kind], not kind.startswith("u")
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = random(seed).integers(low, high, shape)
    return onnx.helper.make_tensor(name, getattr(TENSOR, kind.upper()), shape, values.reshape(-1).tolist())


def floats_of(ints, scale, zero_point=None, **attributes):
    """The weight that dequantize_onnx makes of a constant that an Add reads."""
    tensors = {"w_quantized": ints, "s": scale} | ({} if zero_point is None else {"z": zero_point})
    ints.name = "w_quantized"
    made = model(
        [node("DequantizeLinear", " ".join(tensors), "w_dq", **attributes), node("Add", "x w_dq", "y")],
        {"x": [1] * len(SHAPE)}, ["y"], tensors,
    )  # fmt: skip
    result, report = floated(made)
    assert [one.op_type for one in result.graph.node] == ["Add"]
    assert [(e.target, e.source) for e in report.entries] == [("w", "w_quantized")]
    return weights(result)["w"]


@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("zero", [False, True])
def test_every_integer_per_tensor_and_per_channel(kind, axis, zero):
    count = () if axis is None else (SHAPE[axis],)
    scale = random(1).uniform(1e-3, 1, count).astype(np.float32)
    points = integers(kind, count, 2, "z") if zero and kind != "int32" else None
    attributes = {} if axis is None else {"axis": axis}
    wanted = dequantized(integers(kind, SHAPE), scale, points, **attributes)
    assert same_bits(floats_of(integers(kind, SHAPE), scale, points, **attributes), wanted)


# ONNX Runtime takes no shorter last block of 4-bit values, so there is nothing to compare with for those.
BLOCKS = [
    (kind, axis, block)
    for kind in ("int8", "uint8", "int4", "uint4", "int16")
    for axis, block in ((0, 2), (0, 4), (1, 2), (2, 3), (-1, 2))
    if SHAPE[axis] % block == 0 or "4" not in kind
]


@pytest.mark.parametrize(("kind", "axis", "block"), BLOCKS)
def test_blocks(kind, axis, block):
    shape = tuple(-(-n // block) if dim == axis % 3 else n for dim, n in enumerate(SHAPE))
    scale = random(1).uniform(-1, 1, shape).astype(np.float32)
    attributes = {"axis": axis, "block_size": block}
    wanted = dequantized(integers(kind, SHAPE), scale, integers(kind, shape, 2, "z"), **attributes)
    assert same_bits(floats_of(integers(kind, SHAPE), scale, integers(kind, shape, 2, "z"), **attributes), wanted)


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
@pytest.mark.parametrize("axis", [None, 1])
def test_eight_bit_floats(kind, axis):
    values = random(0).normal(size=SHAPE).astype(np.float32)
    ints = onnx.helper.make_tensor("q", getattr(TENSOR, kind), SHAPE, values.reshape(-1).tolist())
    scale = random(1).uniform(1e-3, 1, () if axis is None else (5,)).astype(np.float32)
    attributes = {} if axis is None else {"axis": axis}
    wanted = dequantized(ints, scale, **attributes)
    assert same_bits(floats_of(ints, scale, **attributes), wanted)


def test_half_precision_scales_give_half_precision_weights():
    scale = random(1).uniform(1e-3, 1, (5,)).astype(np.float16)
    wanted = dequantized(integers("int8", SHAPE), scale, axis=1)
    made = model(
        [node("DequantizeLinear", "q s", "w", axis=1), node("Add", "x w", "y")], {"x": [1] * len(SHAPE)}, ["y"],
        {"q": integers("int8", SHAPE), "s": scale}, types={"x": TENSOR.FLOAT16, "y": TENSOR.FLOAT16},
    )  # fmt: skip
    assert same_bits(weights(floated(made)[0])["q"], wanted)


def test_scales_of_zero_and_below_are_what_onnx_says_they_are():
    scale = np.array([0.5, 0.0, -0.25, 1, 2, 3], np.float32)
    wanted = dequantized(integers("int8", SHAPE), scale, axis=0)
    assert same_bits(floats_of(integers("int8", SHAPE), scale, axis=0), wanted)


@pytest.mark.parametrize("kind", ["int8", "int4", "uint16"])
def test_raw_bytes_and_numbers_are_read_alike(kind):
    ints = integers(kind, SHAPE)
    raw = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(ints), "q")
    assert raw.HasField("raw_data")
    assert not ints.HasField("raw_data")
    scale = np.float32(0.1)
    assert same_bits(floats_of(ints, scale), floats_of(raw, scale))


@pytest.mark.parametrize("mode", ["drop", "fake_quant"])
def test_a_float_constant_that_the_model_rounds_gets_the_rounded_values(mode):
    """Models of quantization-aware training store the float weight, with Q and DQ behind it."""
    rng = random(0)
    tensors = {
        "w": rng.normal(size=(4, 3)).astype(np.float32),
        "s": rng.uniform(0.01, 0.05, 4).astype(np.float32),
        "z": rng.integers(-5, 5, 4).astype(np.int8),
    }
    nodes = [
        node("QuantizeLinear", "w s z", "q", axis=0),
        node("DequantizeLinear", "q s z", "d", axis=0),
        node("Transpose", "d", "t"),
        node("MatMul", "x t", "y"),
    ]
    made = model(nodes, {"x": [2, 3]}, ["y"], tensors)
    result, report = floated(made, activations=mode)
    assert same_bits(weights(result)["w"], run(model(nodes[:2], {}, {"d": 2}, tensors), {})[0])
    assert "rounded as" in report.entries[0].note


def test_one_weight_read_twice_is_one_weight_and_with_other_scales_another():
    nodes = [
        node("DequantizeLinear", "q s", "a"),
        node("DequantizeLinear", "q s", "b", "again"),
        node("DequantizeLinear", "q t", "c", "other"),
        node("Sum", "x a b c", "y"),
    ]
    tensors = {"q": integers("int8", (3,)), "s": np.float32(0.1), "t": np.float32(0.3)}
    result, _ = floated(model(nodes, {"x": [3]}, ["y"], tensors))
    assert list(weights(result)) == ["q", "q_1"]
    assert list(result.graph.node[0].input) == ["x", "q", "q", "q_1"]


def test_integers_that_something_else_reads_stay():
    nodes = [node("DequantizeLinear", "q s", "w"), node("Cast", "q", "c", to=1), node("Sum", "x w c", "y")]
    made = model(nodes, {"x": [3]}, ["y"], {"q": integers("int8", (3,)), "s": np.float32(0.1)})
    result, _ = floated(made)
    x = np.zeros(3, np.float32)
    assert same_bits(run(result, {"x": x})[0], run(made, {"x": x})[0])
    assert set(weights(result)) == {"q", "q_1"}
