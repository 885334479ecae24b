"""Scales computed when the model runs, and operators that hold integers in layouts of their own."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_graphs.models import (
    MICROSOFT,
    dequantized,
    floated,
    model,
    node,
    onnx,
    operators,
    random,
    run,
    same_bits,
    weights,
)

rng = random(0)
# Signed weights are of 7 bits: without VNNI, ONNX Runtime's sums of 8-bit ones may saturate.
QUANTIZE = node("DynamicQuantizeLinear", "x", "x_q xs xz")


def check(source, feeds, ops, tolerance):
    """With the activation's rounding kept, the result is the source; without it, no quantized operator is left."""
    kept, _ = floated(source, activations="fake_quant")
    wanted = run(source, feeds)
    for mine, theirs in zip(run(kept, feeds), wanted, strict=True):
        assert np.abs(mine - theirs).max() <= tolerance * np.abs(theirs).max()
    result, report = floated(source)
    assert operators(result) == ops
    for mine, theirs in zip(run(result, feeds), wanted, strict=True):
        assert np.abs(mine - theirs).max() <= 0.05 * np.abs(theirs).max()
    return weights(result), report


SUMS = {
    "one scale": ("ws", [node("Mul", "xs ws", "s"), node("Mul", "f s", "y")]),
    "turned": ("ws", [node("Mul", "ws xs", "s"), node("Mul", "s f", "y")]),
    "one after the other": ("ws", [node("Mul", "f ws", "s"), node("Mul", "s xs", "y")]),
    "the other way": ("ws", [node("Mul", "xs f", "s"), node("Mul", "s ws", "y")]),
    "channels": ("cs", [node("Mul", "xs cs", "s"), node("Mul", "f s", "y")]),
}


@pytest.mark.parametrize("case", SUMS)
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_sums_of_integers(case, op):
    scale, muls = SUMS[case]
    conv = op == "Conv"
    shape, out = ((5, 3, 2, 2), 5) if conv else ((4, 6), 6)
    channels = rng.uniform(0.01, 0.02, out).astype(np.float32)
    tensors = {
        "w_quantized": rng.integers(0, 255, shape).astype(np.uint8),
        "wz": np.uint8(128),
        "ws": np.float32(0.013),
        "cs": channels.reshape(-1, 1, 1) if conv else channels,
    }
    one = node(f"{op}Integer", "x_q w_quantized xz wz", "i", **({"strides": [2, 1]} if conv else {}))
    x = rng.normal(size=(2, 3, 5, 5) if conv else (2, 4)).astype(np.float32)
    source = model([QUANTIZE, one, node("Cast", "i", "f", to=1), *muls], {"x": x.shape}, ["y"], tensors)
    held, report = check(source, {"x": x}, [op], 1e-5)
    axis = {} if scale == "ws" else {"axis": 0 if conv else 1}
    wanted = dequantized(
        tensors["w_quantized"],
        tensors["ws"] if scale == "ws" else channels,
        tensors["wz"] if scale == "ws" else np.full(out, 128, np.uint8),
        **axis,
    )
    assert same_bits(held["w"], wanted)
    assert report.replaced[f"{op}Integer"] == (f"{op}Integer", op)


def test_a_zero_point_for_each_column():
    tensors = {
        "w": rng.integers(0, 255, (4, 6)).astype(np.uint8),
        "wz": rng.integers(0, 255, 6).astype(np.uint8),
        "cs": rng.uniform(0.01, 0.02, 6).astype(np.float32),
    }
    nodes = [QUANTIZE, node("MatMulInteger", "x_q w xz wz", "i"), node("Cast", "i", "f", to=1), *SUMS["channels"][1]]
    x = rng.normal(size=(2, 4)).astype(np.float32)
    held, _ = check(model(nodes, {"x": x.shape}, ["y"], tensors), {"x": x}, ["MatMul"], 1e-5)
    assert same_bits(held["w"], dequantized(tensors["w"], tensors["cs"], tensors["wz"], axis=1))


@pytest.mark.parametrize("bias", [False, True])
def test_dynamic_quantize_matmul(bias):
    tensors = {
        "w": rng.integers(-63, 64, (4, 6)).astype(np.int8),
        "ws": rng.uniform(0.01, 0.02, 6).astype(np.float32),
        "wz": np.zeros(6, np.int8),
        "bias": rng.normal(size=6).astype(np.float32),
    }
    one = node("DynamicQuantizeMatMul", "x w ws wz" + (" bias" if bias else ""), "y", domain=MICROSOFT)
    source = model([one], {"x": (2, 4)}, ["y"], tensors)
    held, _ = check(source, {"x": rng.normal(size=(2, 4)).astype(np.float32)}, ["MatMul"] + ["Add"] * bias, 0.05)
    assert same_bits(held["w"], dequantized(tensors["w"], tensors["ws"], tensors["wz"], axis=1))
    assert floated(source, activations="fake_quant")[1].uncovered[0].operation == "DynamicQuantizeMatMul"


@pytest.mark.parametrize("scales", ["one", "direction", "columns"])
@pytest.mark.parametrize("directions", [1, 2])
def test_dynamic_quantize_lstm(scales, directions):
    hidden, inputs = 3, 4
    shape = {"one": (1,), "direction": (directions,), "columns": (directions, 4 * hidden)}[scales]
    if scales == "one" and directions == 2:
        shape = (2,)
    tensors = {"B": rng.normal(size=(directions, 8 * hidden)).astype(np.float32)}
    for name, size in (("W", inputs), ("R", hidden)):
        tensors[f"{name}_quantized"] = rng.integers(-63, 64, (directions, size, 4 * hidden)).astype(np.int8)
        tensors[f"{name}s"] = rng.uniform(0.005, 0.01, shape).astype(np.float32)
        tensors[f"{name}z"] = np.zeros(shape, np.int8)
    one = node(
        "DynamicQuantizeLSTM",
        "x W_quantized R_quantized B - - - - Ws Wz Rs Rz",
        "y h",
        domain=MICROSOFT,
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
    )
    source = model([one], {"x": (5, 2, inputs)}, {"y": 4, "h": 3}, tensors)
    held, _ = check(source, {"x": rng.normal(size=(5, 2, inputs)).astype(np.float32)}, ["LSTM"], 0.05)
    for name in "WR":
        scale = tensors[f"{name}s"].reshape(-1, 1, 4 * hidden if scales == "columns" else 1)
        floats = tensors[f"{name}_quantized"].astype(np.float32) * scale
        assert same_bits(held[name], np.ascontiguousarray(floats.transpose(0, 2, 1)))


@pytest.mark.parametrize(("bits", "zeros"), [(4, None), (4, "packed"), (4, "float"), (8, None), (8, "packed")])
@pytest.mark.parametrize(("columns", "block"), [(64, 32), (40, 16)])
def test_matmul_nbits(bits, zeros, columns, block):
    outputs, blocks = 6, -(-columns // block)
    bytes_of = blocks * bits // 8 + (blocks * bits % 8 > 0)
    tensors = {
        "B_Q4": rng.integers(0, 256, (outputs, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(-0.02, 0.02, outputs * blocks).astype(np.float32),
    }
    if zeros == "packed":
        tensors["z"] = rng.integers(0, 256, outputs * bytes_of).astype(np.uint8)
    elif zeros == "float":
        tensors["z"] = rng.uniform(0, 15, outputs * blocks).astype(np.float32)
    one = node(
        "MatMulNBits",
        "x B_Q4 s" + (" z" if zeros else ""),
        "y",
        domain=MICROSOFT,
        K=columns,
        N=outputs,
        bits=bits,
        block_size=block,
    )
    source = model([one], {"x": ("rows", columns)}, ["y"], tensors)
    result, report = floated(source)
    assert operators(result) == ["MatMul"]
    # The rows of the unit matrix read the weight out of the operator itself.
    unit = np.eye(columns, dtype=np.float32)
    read = run(source, {"x": unit})[0]
    # With float zero points its own products are rounded in another order.
    assert np.abs(read - weights(result)["B"]).max() <= (1e-7 if zeros == "float" else 0)
    assert report.entries[0].source == "B_Q4"


def test_quantized_attention():
    hidden = 8
    tensors = {
        "w": rng.integers(-63, 64, (hidden, 3 * hidden)).astype(np.int8),
        "b": rng.normal(size=3 * hidden).astype(np.float32),
        "s": np.float32(0.02),
        "z": np.uint8(128),
        "ws": np.float32(0.01),
        "wz": np.int8(0),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("QAttention", "q w b s ws - z wz", "y", domain=MICROSOFT, num_heads=2, unidirectional=0),
    ]
    source = model(nodes, {"x": (2, 5, hidden)}, ["y"], tensors)
    held, _ = check(source, {"x": rng.normal(size=(2, 5, hidden)).astype(np.float32)}, ["Attention"], 1e-4)
    assert same_bits(held["w"], dequantized(tensors["w"], tensors["ws"]))


def test_the_scale_of_a_dynamic_value_is_a_value_of_its_own_for_nobody_else():
    source = model([QUANTIZE, node("Neg", "xs", "y")], {"x": (2, 4)}, {"y": 0}, {})
    with pytest.raises(Exception, match=r"node 'Neg' \(Neg\): expected a Cast to float, or a Mul"):
        floated(source)
    assert onnx is not None
