"""Graphs within graphs, functions, orders of nodes, constants as nodes: what surrounds quantized operators."""

from __future__ import annotations

import numpy as np
import pytest

import qdeq
from tests.onnx_graphs.models import MICROSOFT, floated, model, node, onnx, operators, random, run, same_bits, weights

rng = random(0)
TENSORS = {
    "w_quantized": rng.integers(-99, 99, (4, 4)).astype(np.int8),
    "ws": np.float32(0.013),
    "s": np.float32(0.03),
    "z": np.uint8(128),
    "yes": np.array(True),
    "three": np.array(3),
}
X = rng.normal(size=(2, 4)).astype(np.float32)
QDQ = [node("QuantizeLinear", "h s z", "q", "Q"), node("DequantizeLinear", "q s z", "d", "D")]
WEIGHT = node("DequantizeLinear", "w_quantized ws", "w", "W")


def body(nodes, outputs, inputs=()):
    info = onnx.helper.make_tensor_value_info
    gives = [info(name, 9 if name == "go" else 1, [] if name == "go" else [2, 4]) for name in outputs]
    return onnx.helper.make_graph(nodes, "body", list(inputs), gives)


def check(source):
    kept, _ = floated(source, activations="fake_quant")
    assert same_bits(run(kept, {"x": X})[0], run(source, {"x": X})[0])
    result, report = floated(source)
    assert np.abs(run(result, {"x": X})[0] - run(source, {"x": X})[0]).max() < 0.1
    return result, report


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_branches_are_entered(where):
    """The weight is dequantized in the branch, or around it; the value that is rounded comes from around it."""
    inside = [node("MatMul", "d w", "o")]
    nodes = [node("Neg", "x", "h"), *QDQ]
    (inside if where == "inside" else nodes).insert(0, WEIGHT)
    one = node("If", "yes", "y", then_branch=body(inside, ["o"]), else_branch=body([node("Identity", "d", "e")], ["e"]))
    result, report = check(model([*nodes, one], {"x": [2, 4]}, ["y"], TENSORS))
    assert list(weights(result)) == ["yes", "w"] or "w" in weights(result)
    assert [entry.target for entry in report.entries] == ["w"]


def test_integers_in_a_branch_go_like_any():
    branch = body([WEIGHT, node("MatMul", "x w", "o")], ["o"])
    branch.initializer.append(onnx.numpy_helper.from_array(TENSORS["w_quantized"], "w_quantized"))
    one = node("If", "yes", "y", then_branch=branch, else_branch=body([node("Neg", "x", "e")], ["e"]))
    result, report = check(model([one], {"x": [2, 4]}, ["y"], {n: t for n, t in TENSORS.items() if n != "w_quantized"}))
    assert not [tensor for a in result.graph.node[0].attribute for tensor in a.g.initializer]
    assert [(entry.target, entry.source) for entry in report.entries] == [("w", "w_quantized")]


def test_loops_are_entered():
    info = onnx.helper.make_tensor_value_info
    inputs = [info("i", 7, []), info("on", 9, []), info("h", 1, [2, 4])]
    inside = [*QDQ, WEIGHT, node("MatMul", "d w", "o"), node("Identity", "on", "go")]
    one = node("Loop", "three yes x", "y", body=body(inside, ["go", "o"], inputs))
    check(model([one], {"x": [2, 4]}, ["y"], TENSORS))


def test_a_branch_in_a_branch():
    deep = node(
        "If",
        "yes",
        "b",
        "deep",
        then_branch=body([node("Relu", "d", "r")], ["r"]),
        else_branch=body([node("Identity", "d", "n")], ["n"]),
    )
    one = node("If", "yes", "y", then_branch=body([deep], ["b"]), else_branch=body([node("Identity", "d", "e")], ["e"]))
    check(model([node("Neg", "x", "h"), *QDQ, one], {"x": [2, 4]}, ["y"], TENSORS))


def test_functions_are_put_in_place():
    domain = "local"
    function = onnx.helper.make_function(
        domain, "Rounded", ["h", "s", "z"], ["d"], QDQ, [onnx.helper.make_opsetid("", 21)]
    )
    source = model(
        [WEIGHT, node("MatMul", "x w", "m"), node("Rounded", "m s z", "y", domain=domain)],
        {"x": [2, 4]},
        ["y"],
        TENSORS,
    )
    source.functions.append(function)
    source.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    result, _ = check(source)
    assert operators(result)[:1] == ["MatMul"]


def test_functions_without_quantized_operators_stay():
    domain = "local"
    function = onnx.helper.make_function(
        domain, "Twice", ["a"], ["b"], [node("Add", "a a", "b")], [onnx.helper.make_opsetid("", 21)]
    )
    source = model(
        [WEIGHT, node("MatMul", "x w", "m"), node("Twice", "m", "y", domain=domain)], {"x": [2, 4]}, ["y"], TENSORS
    )
    source.functions.append(function)
    source.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    result, _ = check(source)
    assert operators(result) == ["MatMul", "Twice", "Add"]


def test_scales_and_weights_as_nodes():
    """Exporters write constants as nodes, too."""
    array = onnx.numpy_helper.from_array
    nodes = [
        node("Constant", "", "w_quantized", "C", value=array(TENSORS["w_quantized"])),
        node("Constant", "", "ws", "CS", value_float=0.013),
        WEIGHT,
        node("MatMul", "x w", "y"),
    ]
    result, report = check(model(nodes, {"x": [2, 4]}, ["y"], {}))
    assert operators(result) == ["MatMul"]
    assert [entry.target for entry in report.entries] == ["w"]


def test_nodes_in_any_order():
    nodes = [node("MatMul", "d w", "y"), QDQ[1], WEIGHT, QDQ[0], node("Neg", "x", "h")]
    source = model(nodes, {"x": [2, 4]}, ["y"], TENSORS)
    result, _ = floated(source)
    assert operators(result) == ["Neg", "MatMul"]


def test_initializers_that_are_inputs_as_well():
    """Files of old writers list every initializer among the inputs."""
    source = model(
        [WEIGHT, node("MatMul", "x w", "y")],
        {"x": [2, 4], "w_quantized": [4, 4], "ws": []},
        ["y"],
        TENSORS,
        types={"w_quantized": 3},
    )
    result, _ = floated(source)
    assert [value.name for value in result.graph.input] == ["x"]


def test_what_is_not_quantized_keeps_every_field():
    source = model(
        [WEIGHT, node("MatMul", "x w", "m"), node("Gelu", "m", "y", domain=MICROSOFT)], {"x": [2, 4]}, ["y"], TENSORS
    )
    source.producer_name, source.doc_string, source.graph.doc_string = "someone", "text", "more"
    source.metadata_props.add(key="k", value="v")
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("m", 1, [2, 4]))
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("w", 1, [4, 4]))
    result, _ = floated(source)
    for field in ("producer_name", "doc_string", "ir_version", "metadata_props", "opset_import"):
        assert getattr(result, field) == getattr(source, field), field
    assert [value.name for value in result.graph.value_info] == ["m"]
    assert result.graph.node[-1] == source.graph.node[-1]


REFUSED = {
    "an operator that is not known": (
        [*QDQ[:1], node("Neg", "q", "y")],
        r"node 'Neg' \(Neg\): expected an operator that qdeq knows on quantized values",
    ),
    "one of ONNX Runtime": (
        [node("QMoE", "x", "y", domain=MICROSOFT)],
        r"node 'QMoE' \(QMoE\): expected a quantized operator that qdeq knows",
    ),
    "a scale that is computed": (
        [node("Abs", "s", "t"), node("QuantizeLinear", "h t z", "q", "Q")],
        r"node 'Q' .* a constant scale, got 't', which",
    ),
    "a zero point of another type": (
        [node("DequantizeLinear", "w_quantized ws z", "y", "D")],
        r"node 'D' .* a zero point 'z' of the type of 'w_quantized', int8, got uint8",
    ),
    "a zero point of floats": (
        [node("QuantizeLinear", "h s s", "q", "Q")],
        "node 'Q' .* a zero point 's' of an integer type",
    ),
    "a scale of integers": (
        [node("QuantizeLinear", "h z z", "q", "Q")],
        "node 'Q' .* a floating point scale 'z', got uint8",
    ),
    "another scale": (
        [QDQ[0], node("DequantizeLinear", "q ws z", "y", "D")],
        "node 'D' .* the scale and zero point that 'q' was quantized with, 0.0299999993 and 128 of uint8, got 0.013",
    ),
    "another zero point": (
        [QDQ[0], node("DequantizeLinear", "q s", "y", "D")],
        "node 'D' .* got 0.0299999993 and 0 of",
    ),
    "scales that do not fit": (
        [node("DequantizeLinear", "w_quantized cs", "y", "D", axis=0)],
        r"scale 'cs': expected scales of shape \(4,\) for axis 0",
    ),
    "an axis outside": (
        [node("DequantizeLinear", "w_quantized cs", "y", "D", axis=5)],
        "'w_quantized': axis: expected one of 2",
    ),
    "channels behind a Reshape": (
        [node("Reshape", "w_quantized flat", "r", "R"), node("DequantizeLinear", "r cs", "y", "D", axis=0)],
        r"node 'R' \(Reshape\): expected scales per tensor",
    ),
    "a circle": (
        [node("Add", "x b", "a"), node("Neg", "a", "b"), node("DequantizeLinear", "w_quantized ws", "y")],
        r"nodes that can run one after another, got a circle with 'Add' \(Add\)",
    ),
    "a name that nothing gives": ([node("DequantizeLinear", "nowhere ws", "y")], "'nowhere': expected a node, input"),
    "a name given twice": ([node("Neg", "x", "y"), node("Abs", "x", "y")], "'y': expected one node that gives it"),
    "infinite scales": (
        [node("DequantizeLinear", "w_quantized inf", "y")],
        "'w_quantized': expected scales that are finite",
    ),
    "integers out of a branch": (
        [
            node(
                "If",
                "yes",
                "y",
                then_branch=body([node("QuantizeLinear", "x s z", "o")], ["o"]),
                else_branch=body([node("Neg", "x", "e")], ["e"]),
            )
        ],
        r"node 'If' \(If\): expected a graph in it that gives floats as 'o'",
    ),
    "sums of integers as they are": (
        [
            node("DynamicQuantizeLinear", "x", "q qs qz"),
            node("MatMulInteger", "q w_quantized qz", "i"),
            node("Neg", "i", "y"),
        ],
        r"node 'Neg' \(Neg\): expected a Cast to float, or a Mul",
    ),
    "sums of other integers": (
        [QDQ[0], node("MatMulInteger", "q w_quantized z", "y")],
        r"\(MatMulInteger\): expected 'q' from DynamicQuantizeLinear",
    ),
    "columns in another order": (
        [node("MatMulNBits", "x w_quantized ws - z", "y", domain=MICROSOFT, K=4, N=4, bits=4, block_size=16)],
        "MatMulNBits.*columns in their own order",
    ),
    "too few bytes for its sizes": (
        [node("MatMulNBits", "x z ws", "y", domain=MICROSOFT, K=64, N=4, bits=4, block_size=16)],
        "MatMulNBits.*expected 128 values of uint8 in 'z', got 1",
    ),
    "channels last": (
        [QDQ[0], node("QLinearGlobalAveragePool", "q s z s z", "y", "P", domain=MICROSOFT, channels_last=1)],
        "node 'P' .* channels in dimension 1, got channels_last=1",
    ),
    "resized values between others": (
        [QDQ[0], node("Resize", "q - - sizes", "r", "R", mode="linear"), node("DequantizeLinear", "r s z", "y")],
        "node 'R' .* only moves quantized values, got mode b'linear'",
    ),
    "nothing quantized": ([node("Neg", "x", "y")], "expected a model with something quantized, got one without"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_one_error_that_names_node_and_tensor(case):
    nodes, message = REFUSED[case]
    names = {name for one in nodes for name in one.input}
    if "h" in names:
        nodes = [node("Neg", "x", "h", "H"), *nodes]
    held = TENSORS | {
        "cs": np.ones(3, np.float32),
        "inf": np.float32(np.inf),
        "flat": np.array([16]),
        "sizes": np.array([4, 8]),
    }
    with pytest.raises(qdeq.QdeqError, match=message):
        qdeq.dequantize_onnx(model(nodes, {"x": [2, 4]}, ["y"], held))


def test_arguments_are_checked():
    with pytest.raises(qdeq.QdeqTypeError, match=r"expected a path or an onnx.ModelProto, got builtins.int"):
        qdeq.dequantize_onnx(3)
    with pytest.raises(qdeq.QdeqValueError, match=r"activations: expected one of drop, clamp, fake_quant, got 'no'"):
        qdeq.dequantize_onnx("m.onnx", activations="no")
