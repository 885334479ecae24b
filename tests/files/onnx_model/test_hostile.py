"""Damaged ONNX files: converted or refused with one error that names the file, and nothing left behind."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

import qdeq
from tests.files.onnx_model.cases import save_apart, small_model
from tests.onnx_graphs.models import MICROSOFT, model, node, onnx
from tests.onnx_graphs.test_dynamic import SUMS
from tests.onnx_graphs.test_qlinear import CASES, TENSORS, around

FILES = 1000
SEED = 7


def sources(tmp_path):
    """Files of every family of operators."""
    dynamic = [
        node("DynamicQuantizeLinear", "x", "x_q xs xz"), node("MatMulInteger", "x_q m xz mz", "i"),
        node("Cast", "i", "f", to=1), *SUMS["one scale"][1],
    ]  # fmt: skip
    bits = [node("MatMulNBits", "x B s", "y", domain=MICROSOFT, K=64, N=6, bits=4, block_size=32)]
    held = {"B": np.zeros((6, 2, 16), np.uint8), "s": np.ones(12, np.float32)}
    made = {
        "qdq": small_model(),
        "conv": around([CASES["conv channels"][0]], (2, 3, 4, 4))[0],
        "concat": around([CASES["concat"][0]], (2, 3, 4, 4))[0],
        "dynamic": model(dynamic, {"x": (2, 4)}, ["y"], TENSORS | {"ws": np.float32(1), "mz": np.int8(0)}),
        "bits": model(bits, {"x": (2, 64)}, ["y"], held),
    }
    for name, one in made.items():
        onnx.save(one, tmp_path / f"{name}.onnx")
    save_apart(small_model(), tmp_path, "apart.onnx")
    return [tmp_path / f"{name}.onnx" for name in (*made, "apart")]


def cut(rng, data):
    return data[: rng.randrange(len(data))]


def flip(rng, data):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def swap(rng, data):
    one, other, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(1, 40)
    return data[:one] + data[other : other + size] + data[one + size :]


def rewire(rng, data):
    """A node reads another value, or has another operator's name, or its place."""
    made = onnx.ModelProto.FromString(data)
    nodes = made.graph.node
    names = [name for one in nodes for name in (*one.input, *one.output)] + ["nowhere", ""]
    one = rng.choice(nodes)
    kind = rng.randrange(5)
    if kind == 0 and one.input:
        one.input[rng.randrange(len(one.input))] = rng.choice(names)
    elif kind == 1:
        one.op_type = rng.choice(nodes).op_type
    elif kind == 2 and one.output:
        one.output[0] = rng.choice(names)
    elif kind == 3:
        del one.input[rng.randrange(len(one.input) + 1) :]
    else:
        nodes.remove(one)
    return made.SerializeToString()


def lie(rng, data):
    """A tensor or attribute says something else of itself."""
    made = onnx.ModelProto.FromString(data)
    tensor = rng.choice(made.graph.initializer)
    attributes = [attribute for one in made.graph.node for attribute in one.attribute]
    kind = rng.randrange(7)
    if kind == 0:
        tensor.data_type = rng.randrange(30)
    elif kind == 1:
        tensor.dims.append(rng.choice([0, 2, -1, 2**62]))
    elif kind == 2 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, 1, 7, -5, 2**40])
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[:-1] if tensor.raw_data else b"x"
    elif kind == 4 and tensor.external_data:
        rng.choice(tensor.external_data).value = rng.choice(["-1", "99999999999", "../x", "x" * 99, "\x00"])
    elif attributes:
        attribute = rng.choice(attributes)
        attribute.i, attribute.type = rng.choice([-1, 0, 5, 2**40]), rng.choice([1, 2, 2, 5, 7])
    return made.SerializeToString()


WAYS = (cut, flip, swap, rewire, lie)


def test_a_thousand_damaged_files(tmp_path, monkeypatch):
    """Protobuf has no checksums: a file whose damage changes no meaning that counts here is converted."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # of three hundred files, it takes most of the time
    paths, rng = sources(tmp_path), random.Random(SEED)
    whole = [path.read_bytes() for path in paths]
    hostile, out = tmp_path / "hostile.onnx", tmp_path / "out.onnx"
    before, refused = set(os.listdir(tmp_path)) | {"hostile.onnx"}, 0
    for at in range(FILES):
        way = WAYS[at % len(WAYS)]
        hostile.write_bytes(way(rng, whole[at // len(WAYS) % len(whole)]))
        text = ""
        try:
            qdeq.dequantize_onnx(hostile, out)
        except Exception as error:  # noqa: BLE001  # that it is qdeq's own is what is tested
            text = f"{'' if isinstance(error, qdeq.QdeqError) else type(error)}{error}"
        fine = not text or (text.startswith(str(hostile)) and len(text) < 1000 and text.isprintable())
        assert fine, f"file {at} of seed {SEED}, {way.__name__}: {text}"
        refused += bool(text)
        for name in () if text else ("out.onnx", "out.onnx.data"):
            (tmp_path / name).unlink(missing_ok=True)
        assert set(os.listdir(tmp_path)) == before, at
    assert refused > FILES // 2


def test_graphs_within_graphs_without_end_are_refused():
    inner = onnx.helper.make_graph([node("DequantizeLinear", "w s", "o")], "b", [], [])
    for _ in range(25):
        inner = onnx.helper.make_graph([node("Loop", "-", "o", body=inner)], "b", [], [])
    made = onnx.helper.make_model(inner)
    with pytest.raises(qdeq.QdeqError, match=r"model: node 'Loop' .* at most 20 graphs within one another"):
        qdeq.dequantize_onnx(made)


@pytest.mark.parametrize("constant", [False, True])
def test_a_long_chain_takes_no_deep_stack(constant):
    """Thousands of operators behind one another move what was quantized; of a constant, they are refused."""
    count, held = 3000, {"s": np.float32(0.1), "z": np.uint8(0), "c0": np.zeros((4, 4), np.uint8)}
    nodes = [node("QuantizeLinear", "x s z", "x0", "Q")]
    name = "c" if constant else "x"
    nodes += [node("Transpose", f"{name}{at}", f"{name}{at + 1}", f"T{at}") for at in range(count)]
    made = model([*nodes, node("DequantizeLinear", f"{name}{count} s z", "y")], {"x": (4, 4)}, ["y"], held)
    if constant:
        with pytest.raises(qdeq.QdeqError, match=r"node 'T100' \(Transpose\): expected at most 100 operators"):
            qdeq.dequantize_onnx(made)
    else:
        assert len(qdeq.dequantize_onnx(made).graph.node) == count
