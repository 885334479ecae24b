"""Operators that take and give integers: what each becomes, its weights bit for bit, and its values within a step."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_graphs.models import (
    MICROSOFT,
    dequantized,
    floated,
    model,
    node,
    operators,
    random,
    run,
    same_bits,
    weights,
)

STEP = np.float32(0.05)  # of every output
rng = random(0)
TENSORS = {
    "s": np.float32(0.03), "z": np.uint8(120), "t": np.float32(0.02), "u": np.uint8(99),
    "os": STEP, "oz": np.uint8(128), "yes": rng.integers(0, 2, (2, 3, 4, 4)).astype(bool),
    "w": rng.integers(-50, 50, (5, 3, 2, 2)).astype(np.int8), "ws": rng.uniform(0.01, 0.02, 5).astype(np.float32),
    "wz": np.zeros(5, np.int8), "one": np.float32(0.015), "zero": np.int8(3),
    "bias": rng.integers(-900, 900, 5).astype(np.int32), "c": rng.integers(-99, 99, 6).astype(np.int32),
    "m": rng.integers(-50, 50, (4, 6)).astype(np.int8), "ms": rng.uniform(0.01, 0.02, 6).astype(np.float32),
    "mz": np.zeros(6, np.int8), "g": rng.integers(-50, 50, (4, 6)).astype(np.int8),
    "gt": rng.integers(-50, 50, (6, 4)).astype(np.int8),
}  # fmt: skip
X, Y = "a_q s z", "b_q t u"


def ms(op: str, inputs: str, **attributes):
    return node(op, inputs, "o", domain=MICROSOFT, **attributes)


CASES = {
    "conv": (node("QLinearConv", f"{X} w one zero os oz", "o", strides=[1, 2]), "Conv", {"w": ("one", "zero", None)}),
    "conv channels": (
        node("QLinearConv", f"{X} w ws wz os oz bias", "o", pads=[1, 1, 0, 0]), "Conv",
        {"w": ("ws", "wz", 0), "bias": (TENSORS["ws"] * TENSORS["s"], None, 0)},
    ),
    "matmul": (node("QLinearMatMul", f"{X} m one zero os oz", "o"), "MatMul", {"m": ("one", "zero", None)}),
    "matmul channels": (node("QLinearMatMul", f"{X} m ms mz os oz", "o"), "MatMul", {"m": ("ms", "mz", 1)}),
    "add": (ms("QLinearAdd", f"{X} {Y} os oz"), "Add", {}),
    "mul": (ms("QLinearMul", f"{X} {Y} os oz"), "Mul", {}),
    "add without zero points": (ms("QLinearAdd", "a_q s z b_q t u os oz"), "Add", {}),
    "sigmoid": (ms("QLinearSigmoid", f"{X} os oz"), "Sigmoid", {}),
    "leaky": (ms("QLinearLeakyRelu", f"{X} os oz", alpha=0.2), "LeakyRelu", {}),
    "softmax": (ms("QLinearSoftmax", f"{X} os oz", axis=1, opset=13), "Softmax", {}),
    "pool": (ms("QLinearAveragePool", f"{X} os oz", kernel_shape=[2, 2], ceil_mode=0), "AveragePool", {}),
    "global pool": (ms("QLinearGlobalAveragePool", f"{X} os oz", channels_last=0), "GlobalAveragePool", {}),
    "where": (ms("QLinearWhere", f"yes {X} {Y} os oz"), "Where", {}),
    "concat": (ms("QLinearConcat", f"os oz {X} {Y}", axis=1), "Concat", {}),
}  # fmt: skip


def around(nodes, shape, made="o", out_scale="os oz"):
    """Float inputs, quantized for the nodes, and the float value of what they give."""
    nodes = [
        node("QuantizeLinear", "a s z", "a_q", "A"),
        node("QuantizeLinear", "b t u", "b_q", "B"),
        *nodes,
        node("DequantizeLinear", f"{made} {out_scale}", "y", "Y"),
    ]
    source = model(nodes, {"a": shape, "b": shape}, ["y"], TENSORS)
    return source, {name: random(at).normal(size=shape).astype(np.float32) for at, name in enumerate("ab")}


def wanted_weight(name, scale, zero, axis):
    scale = TENSORS[scale] if isinstance(scale, str) else scale
    attributes = {} if axis is None else {"axis": axis}
    return dequantized(TENSORS[name], scale, None if zero is None else TENSORS[zero], **attributes)


@pytest.mark.parametrize("case", CASES)
def test_every_operator(case):
    one, op, held = CASES[case]
    source, feeds = around([one], (2, 3, 4, 4))
    kept, _ = floated(source, activations="fake_quant")
    assert np.abs(run(kept, feeds)[0] - run(source, feeds)[0]).max() <= STEP * 1.01
    result, report = floated(source)
    assert operators(result) == [op]
    assert report.replaced == {one.name: (one.op_type, op)}
    for name, facts in held.items():
        assert same_bits(weights(result)[name], wanted_weight(name, *facts))
    clamped, _ = floated(source, activations="clamp")
    assert np.abs(run(clamped, feeds)[0] - run(source, feeds)[0]).max() <= STEP * 4


@pytest.mark.parametrize("opset", [17, 18])
def test_means_have_their_axes_where_the_opset_wants_them(opset):
    """ONNX Runtime describes QLinearReduceMean, but has no kernel for it on the CPU."""
    one = ms("QLinearReduceMean", f"{X} os oz", axes=[2, 3], keepdims=1)
    source, feeds = around([one], (2, 3, 4, 4))
    source.opset_import[0].version = opset
    result, _ = floated(source)
    assert np.allclose(run(result, feeds)[0], feeds["a"].mean((2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rounded", [True, False])
def test_gemm(transposed, rounded):
    name = "gt" if transposed else "g"
    end = "c os oz" if rounded else "c"
    shape = [
        node("Flatten", "a_q", "f", axis=3),
        ms("QGemm", f"f s z {name} ms mz {end}", transB=transposed, alpha=0.5),
    ]
    source, feeds = around(shape, (2, 3, 4, 4))
    if not rounded:
        source.graph.node[-1].CopyFrom(node("Identity", "o", "y"))
    source.graph.output[0].type.tensor_type.shape.ClearField("dim")
    for size in (24, 6):
        source.graph.output[0].type.tensor_type.shape.dim.add().dim_value = size
    kept, _ = floated(source, activations="fake_quant")
    assert np.abs(run(kept, feeds)[0] - run(source, feeds)[0]).max() <= (STEP * 1.01 if rounded else 1e-4)
    result, _ = floated(source)
    assert operators(result)[:2] == ["Flatten", "Gemm"]
    assert same_bits(weights(result)[name], wanted_weight(name, "ms", "mz", 0 if transposed else 1))
    bias = dequantized(TENSORS["c"], TENSORS["ms"] * TENSORS["s"] * np.float32(0.5), axis=0)
    assert same_bits(weights(result)["c"], bias)


def test_a_swallowed_activation_between_two_operators_comes_back():
    held = dict(TENSORS)
    held |= {"os": np.float32(6 / 255), "oz": np.uint8(0)}
    nodes = [
        node("QuantizeLinear", "a s z", "a_q"),
        node("QLinearConv", "a_q s z w one zero os oz", "o", "first", kernel_shape=[2, 2]),
        ms("QLinearAdd", "o os oz o os oz s z"),
        node("DequantizeLinear", "p s z", "y"),
    ]
    nodes[2].output[0] = "p"
    result, report = floated(model(nodes, {"a": (2, 3, 4, 4)}, ["y"], held))
    assert operators(result) == ["Conv", "Clip", "Add"]
    assert "Clip(0, 6)" in report.notes["first"][0]


def test_integers_times_integers_to_float():
    """MatMulIntegerToFloat, which ONNX Runtime makes of MatMulInteger when it optimises."""
    held = TENSORS | {"float_bias": rng.normal(size=6).astype(np.float32)}
    for end, ops in (("", ["MatMul"]), (" float_bias", ["MatMul", "Add"])):
        nodes = [
            node("QuantizeLinear", "a s z", "a_q"),
            node("MatMulIntegerToFloat", f"a_q m s ms z mz{end}", "y", domain=MICROSOFT),
        ]
        source = model(nodes, {"a": (2, 4)}, ["y"], held)
        feeds = {"a": random(1).normal(size=(2, 4)).astype(np.float32)}
        result, _ = floated(source)
        assert operators(result) == ops
        assert same_bits(weights(result)["m"], wanted_weight("m", "ms", "mz", 1))
        kept, _ = floated(source, activations="fake_quant")
        assert np.abs(run(kept, feeds)[0] - run(source, feeds)[0]).max() < 1e-5
