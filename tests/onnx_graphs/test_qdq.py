"""Q and DQ around activations: dropped, clamped or kept; what moves values between them; what was swallowed."""

from __future__ import annotations

import numpy as np
import pytest

from tests.onnx_graphs.models import floated, model, node, onnx, operators, random, run, same_bits, weights

UINT8, FLOAT = 2, 1
ZERO = np.uint8(0)


def qdq(name: str, out: str, qparams: str = "s z", **attributes):
    return [
        node("QuantizeLinear", f"{name} {qparams}", f"{name}_q", f"{name}_Q", **attributes),
        node("DequantizeLinear", f"{name}_q {qparams}", out, f"{name}_DQ", **attributes),
    ]


def small(between, scale=0.02, zero=ZERO, shape=(2, 3, 4, 4), opset=21, **tensors):
    """A 1x1 convolution whose rounded output runs through the nodes ``between``, integers ``c_q`` to ``m``."""
    rng = random(0)
    held = {
        "w": rng.integers(-100, 100, (3, 3, 1, 1)).astype(np.int8),
        "ws": rng.uniform(0.01, 0.02, 3).astype(np.float32),
        "s": np.float32(scale),
        "z": zero,
    }
    nodes = [
        node("DequantizeLinear", "w ws", "wf", "W", axis=0),
        node("Conv", "x wf", "c"),
        node("QuantizeLinear", "c s z", "c_q"),
        *between,
        node("DequantizeLinear", "m s z", "y", "Y"),
    ]
    made = model(nodes, {"x": shape}, ["y"], held | tensors, opset)
    return made, {"x": rng.normal(size=shape).astype(np.float32)}


MOVES = {
    "identity": [node("Identity", "c_q", "m")],
    "pool": [node("MaxPool", "c_q", "m", kernel_shape=[2, 2])],
    "transpose": [node("Transpose", "c_q", "m", perm=[0, 2, 3, 1])],
    "concat": [node("Concat", "c_q c_q", "m", axis=1)],
    "flatten": [node("Transpose", "c_q", "t", "T"), node("Reshape", "t sizes", "m")],
    "gather": [node("Gather", "c_q places", "m", axis=2)],
    "slice": [node("Slice", "c_q begin end", "m")],
    "pad": [node("Pad", "c_q pads", "m")],
    "pad value": [node("Pad", "c_q pads five", "m")],
    "split": [node("Split", "c_q", "a b", "S", axis=2, num_outputs=2), node("Concat", "b a", "m", axis=2)],
    "where": [node("Where", "yes c_q c_q", "m")],
    "depth": [node("SpaceToDepth", "c_q", "m", blocksize=2)],
}
CONSTANTS = {
    "sizes": np.array([4, 4, 3, 2]), "places": np.array([3, 0, 1]), "yes": np.array(True), "five": np.uint8(5),
    "begin": np.array([0, 1]), "end": np.array([2, 3]), "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["fake_quant", "clamp", "drop"])
@pytest.mark.parametrize("move", MOVES)
def test_what_moves_integers_moves_the_floats(move, mode):
    made, feeds = small(MOVES[move], zero=np.uint8(100), **CONSTANTS)
    source = run(made, feeds)[0]
    result = run(floated(made, activations=mode)[0], feeds)[0]
    if mode == "fake_quant":
        assert same_bits(result, source)
    else:
        inside = (source > -100 * 0.02) & (source < 155 * 0.02)
        assert np.abs(result - source)[inside].max() <= 0.0101
        outside = np.abs(result - source)[~inside].max(initial=0)
        assert bool(outside <= 1e-6) is (mode == "clamp") or inside.all()


def test_the_outermost_values_are_what_clamp_keeps():
    made, feeds = small([node("Identity", "c_q", "m")], scale=0.001, zero=np.uint8(100))
    assert run(floated(made, activations="clamp")[0], feeds)[0].max() == np.float32(0.155)
    assert run(floated(made)[0], feeds)[0].max() > 0.2


@pytest.mark.parametrize(
    ("kind", "lowest", "highest"),
    [(np.uint8, 0, 255), (np.int8, -128, 127), (np.uint16, 0, 65535), (np.int16, -32768, 32767)],
)  # fmt: skip
@pytest.mark.parametrize("top", [6.0, 5.9, 3.0])
def test_a_swallowed_activation_comes_back(kind, lowest, highest, top):
    made, feeds = small([node("Identity", "c_q", "m")], top / (highest - lowest), np.array(lowest, kind))
    result, report = floated(made)
    wanted = "Clip" if top == 6 else "Relu"
    assert operators(result) == ["Conv", wanted, "Identity"]
    assert wanted in "".join(report.notes["QuantizeLinear"])
    plain = run(result, feeds, ["y"])[0]
    assert plain.min() == 0
    assert plain.max() <= 6 or wanted == "Relu"


@pytest.mark.parametrize("zero", [1, 128, 255])
def test_where_negative_values_come_through_there_was_none(zero):
    made, _ = small([node("Identity", "c_q", "m")], 6 / 255, np.uint8(zero))
    assert operators(floated(made)[0]) == ["Conv", "Identity"]


NEVER_NEGATIVE = {
    "relu": [node("Relu", "x", "c")],
    "sigmoid": [node("Sigmoid", "x", "c")],
    "square": [node("Mul", "x x", "c")],
    "pooled": [node("Relu", "x", "r"), node("GlobalAveragePool", "r", "c")],
    "sum": [node("Relu", "x", "r"), node("Abs", "x", "a"), node("Add", "r a", "c")],
    "shifted": [node("Abs", "x", "a"), node("Add", "a one", "c")],
    "input": [node("Identity", "x", "c")],
}


@pytest.mark.parametrize("case", NEVER_NEGATIVE)
def test_no_relu_behind_what_cannot_be_negative(case):
    nodes = [*NEVER_NEGATIVE[case], *qdq("c", "y")]
    if case == "input":
        nodes = qdq("x", "y")
    tensors = {"s": np.float32(0.1), "z": np.uint8(0), "one": np.float32(1)}
    result, report = floated(model(nodes, {"x": [1, 2, 4, 4]}, ["y"], tensors))
    assert [op for op in operators(result) if op != "Identity"] == [
        n.op_type for n in nodes[:-2] if n.op_type != "Identity"
    ]
    assert not report.notes


def test_a_bounded_value_gets_no_second_clip():
    """What is pooled out of a ReLU6 has its scale, and needs no bound of its own."""
    nodes = [
        node("Clip", "x low high", "c"),
        *qdq("c", "d"),
        node("MaxPool", "d", "p", kernel_shape=[2, 2]),
        *qdq("p", "y"),
    ]
    tensors = {"s": np.float32(6 / 255), "z": np.uint8(0), "low": np.float32(0), "high": np.float32(6)}
    assert operators(floated(model(nodes, {"x": [1, 2, 4, 4]}, ["y"], tensors))[0]) == ["Clip", "MaxPool"]


def test_before_opset_11_a_clip_has_its_bounds_as_attributes():
    nodes = [node("Neg", "x", "c"), *qdq("c", "y")]
    made = model(nodes, {"x": [1, 4]}, ["y"], {"s": np.float32(6 / 255), "z": np.uint8(0)}, opset=10)
    x = np.array([[-9, -3, 0, 2]], np.float32)
    assert run(floated(made)[0], {"x": x})[0].tolist() == [[6, 3, 0, 0]]


def test_values_that_only_the_quantizer_reads_are_float_and_others_stay():
    """Shapes of integers, and which of them is largest, do not depend on the scale."""
    nodes = [
        node("Neg", "x", "c"), node("QuantizeLinear", "c s z", "q"), node("Shape", "q", "n"),
        node("ArgMax", "q", "at", axis=1), node("DequantizeLinear", "q s z", "d"),
        node("Reshape", "d n", "y"),
    ]  # fmt: skip
    made = model(nodes, {"x": [2, 4]}, ["y", "at"], {"s": np.float32(0.1), "z": np.uint8(99)}, types={"at": 7})
    x = np.array([[0, 1, -3, 2], [-1, 4, 2, 5]], np.float32)
    result = floated(made)[0]
    for mine, theirs in zip(run(result, {"x": x}), run(made, {"x": x}), strict=True):
        assert np.allclose(mine, theirs, atol=0.05)


def test_bytes_that_come_in_are_made_float_exactly():
    nodes = [node("DequantizeLinear", "x s z", "f"), node("Relu", "f", "y")]
    made = model(nodes, {"x": [2, 128]}, ["y"], {"s": np.float32(0.0173), "z": np.uint8(7)}, types={"x": UINT8})
    result, report = floated(made)
    x = np.arange(256, dtype=np.uint8).reshape(2, 128)
    assert same_bits(run(result, {"x": x})[0], run(made, {"x": x})[0])
    assert "comes in as integers" in report.notes["DequantizeLinear"][0]


def test_integers_that_go_out_become_floats_and_the_report_says_so():
    nodes = [node("Neg", "x", "c"), node("QuantizeLinear", "c s z", "y")]
    made = model(nodes, {"x": [1, 4]}, ["y"], {"s": np.float32(0.1), "z": np.uint8(9)}, types={"y": UINT8})
    result, report = floated(made)
    assert result.graph.output[0].type.tensor_type.elem_type == FLOAT
    assert run(result, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[-1, -1, -1, -1]]
    assert "float now" in report.notes["y"][0]


MOVED_WEIGHTS = {
    "transpose": ([node("Transpose", "w", "m", perm=[1, 0])], 1, (3, 4)),
    "transpose of channels": ([node("Transpose", "w", "m")], 0, (3, 4)),
    "two": ([node("Transpose", "w", "t", "T"), node("Transpose", "t", "m")], 1, (4, 3)),
    "rows": ([node("Gather", "w ids", "m")], None, (2, 3)),
    "reshape": ([node("Reshape", "w shape", "m")], None, (2, 6)),
}


@pytest.mark.parametrize("case", MOVED_WEIGHTS)
def test_integer_weights_behind_what_moves_them(case):
    nodes, axis, shape = MOVED_WEIGHTS[case]
    rng = random(0)
    channels = () if axis is None else (shape[axis],)
    tensors = {
        "w": rng.integers(-128, 128, (4, 3)).astype(np.int8), "s": rng.uniform(0.1, 1, channels).astype(np.float32),
        "ids": np.array([3, 1]), "shape": np.array([2, 6]),
    }  # fmt: skip
    nodes = [
        *nodes,
        node("DequantizeLinear", "m s", "d", **({} if axis is None else {"axis": axis})),
        node("Add", "x d", "y"),
    ]
    made = model(nodes, {"x": shape}, ["y"], tensors)
    result, _ = floated(made)
    x = rng.normal(size=shape).astype(np.float32)
    assert same_bits(run(result, {"x": x})[0], run(made, {"x": x})[0])
    assert weights(result)["w"].shape == (4, 3)


def test_node_outputs_keep_their_names_for_the_graph():
    made, _ = small([node("Identity", "c_q", "m")])
    result, _ = floated(made)
    assert [output.name for output in result.graph.output] == ["y"]
    assert {i.domain for i in result.opset_import} == {""}
    assert onnx.shape_inference.infer_shapes(result, strict_mode=True).graph.output[0].name == "y"
