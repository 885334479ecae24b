"""Models that are written: in one file, with data beside them, never over another file, or not at all."""

from __future__ import annotations

import os

import numpy as np
import pytest

import qdeq
from qdeq.files.onnx_model import writing
from tests.files.onnx_model.cases import feeds, save_apart, small_model
from tests.onnx_graphs.models import onnx, run, same_bits, weights


def whole(path):
    return onnx.load(path)


def listing(folder):
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder)}


def same_models(a, b):
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    assert all(same_bits(one[name], other[name]) for name in one)
    assert [n.op_type for n in a.graph.node] == [n.op_type for n in b.graph.node]


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_written_is_what_is_returned(tmp_path, apart):
    source, wanted = small_model(), qdeq.dequantize_onnx(small_model())
    path = save_apart(source, tmp_path) if apart else tmp_path / "model.onnx"
    if not apart:
        onnx.save(source, path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    out = tmp_path / "float.onnx"
    result, report = qdeq.dequantize_onnx(path, out, return_report=True)
    onnx.checker.check_model(out, full_check=True)
    same_models(whole(out), wanted)
    assert {p: p.read_bytes() for p in before} == before
    assert set(listing(tmp_path)) - {p.name for p in before} == {"float.onnx"} | (
        {"float.onnx.data"} if apart else set()
    )
    assert len(result.graph.node) == len(wanted.graph.node)
    same_models(qdeq.dequantize_onnx(path), wanted)
    for mine, theirs in zip(run(str(out), feeds()), run(wanted, feeds()), strict=True):
        assert same_bits(mine, theirs)
    assert {entry.target for entry in report.entries} == {"conv.weight", "fc.weight"}


def test_large_weights_lie_beside_the_model(tmp_path, monkeypatch):
    wanted = qdeq.dequantize_onnx(small_model())
    monkeypatch.setattr(writing, "EMBEDDED_BYTES", 500)
    monkeypatch.setattr(writing, "SMALL_BYTES", 500)
    out = tmp_path / "float.onnx"
    qdeq.dequantize_onnx(small_model(), out)
    same_models(whole(out), wanted)
    tensors = {t.name: t for t in onnx.load(out, load_external_data=False).graph.initializer}
    apart = {name for name, tensor in tensors.items() if tensor.data_location == onnx.TensorProto.EXTERNAL}
    assert apart == {"conv.weight"}  # 864 bytes; fc.weight has 192


def test_in_memory_large_models_are_refused(monkeypatch):
    monkeypatch.setattr(writing, "EMBEDDED_BYTES", 500)
    with pytest.raises(qdeq.QdeqValueError, match=r"expected at most 500 bytes of float weights in memory.*Pass out="):
        qdeq.dequantize_onnx(small_model())


@pytest.mark.parametrize("taken", ["float.onnx", "float.onnx.data"])
def test_nothing_is_overwritten_unasked(tmp_path, taken):
    path = save_apart(small_model(), tmp_path)
    (tmp_path / taken).write_bytes(b"mine")
    before = listing(tmp_path)
    with pytest.raises(qdeq.QdeqValueError, match=f"{taken}: expected no file of this name yet"):
        qdeq.dequantize_onnx(path, tmp_path / "float.onnx")
    assert listing(tmp_path) == before
    qdeq.dequantize_onnx(path, tmp_path / "float.onnx", force=True)
    onnx.checker.check_model(tmp_path / "float.onnx")


def test_data_of_an_earlier_model_does_not_stay(tmp_path):
    qdeq.dequantize_onnx(save_apart(small_model(), tmp_path), tmp_path / "float.onnx")
    qdeq.dequantize_onnx(small_model(), tmp_path / "float.onnx", force=True)
    assert "float.onnx.data" not in listing(tmp_path)


@pytest.mark.parametrize("target", ["model.onnx", "model.onnx.weights"])
def test_the_source_is_never_replaced(tmp_path, target):
    path = save_apart(small_model(), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(qdeq.QdeqValueError, match="out: expected another file, got .*a file of the source"):
        qdeq.dequantize_onnx(path, tmp_path / target, force=True)
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_data_of_the_source_is_not_replaced_by_that_of_the_result(tmp_path):
    source = save_apart(small_model(), tmp_path)
    made = onnx.load(source, load_external_data=False)
    (tmp_path / "model.onnx.weights").rename(tmp_path / "float.onnx.data")
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "float.onnx.data"
    source.write_bytes(made.SerializeToString())
    with pytest.raises(qdeq.QdeqValueError, match=r"float.onnx.data, a file of the source"):
        qdeq.dequantize_onnx(source, tmp_path / "float.onnx", force=True)


def test_after_an_error_nothing_is_left(tmp_path):
    path = save_apart(small_model(), tmp_path)
    os.truncate(tmp_path / "model.onnx.weights", 300)
    before = listing(tmp_path)
    with pytest.raises(
        qdeq.QdeqValueError, match="model.onnx: '.*': expected .* bytes in 'model.onnx.weights', got 300"
    ):
        qdeq.dequantize_onnx(path, tmp_path / "float.onnx")
    assert listing(tmp_path) == before
    with pytest.raises(qdeq.QdeqError, match="no folder"):
        qdeq.dequantize_onnx(small_model(), tmp_path / "no" / "float.onnx")


LOCATIONS = [
    "../outside",
    "/etc/hostname",
    "sub/../../outside",
    "missing",
    "",
    ".",
    "link",
    "pipe",
    "a\0b",
    "..\\outside",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_no_file_outside_of_the_models_folder_is_read(tmp_path, location):
    (tmp_path / "outside").write_bytes(bytes(100_000))
    folder = tmp_path / "in"
    folder.mkdir()
    path = save_apart(small_model(), folder)
    os.symlink(tmp_path / "outside", folder / "link")
    os.mkfifo(folder / "pipe")
    made = onnx.load(path, load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(made.SerializeToString())
    before = listing(folder)
    with pytest.raises(qdeq.QdeqValueError, match=r"model.onnx: '\S+': expected .*external data"):
        qdeq.dequantize_onnx(path, folder / "float.onnx")
    assert listing(folder) == before


@pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("offset", "9" * 30), ("length", "3"), ("length", "x")])
def test_offsets_and_lengths_are_checked(tmp_path, key, value):
    path = save_apart(small_model(), tmp_path)
    made = onnx.load(path, load_external_data=False)
    for tensor in made.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == key:
                entry.value = value
    path.write_bytes(made.SerializeToString())
    with pytest.raises(qdeq.QdeqValueError, match=r"model.onnx: '\S+'"):
        qdeq.dequantize_onnx(path, tmp_path / "float.onnx")


def test_files_that_a_cache_links_to_are_read(tmp_path):
    """A cache of downloads keeps the files elsewhere, model and data side by side, under names of its own."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    path = save_apart(small_model(), blobs)
    path.rename(blobs / "1")
    (blobs / "model.onnx.weights").rename(blobs / "2")
    os.symlink(blobs / "1", folder / "model.onnx")
    os.symlink(blobs / "2", folder / "model.onnx.weights")
    same_models(qdeq.dequantize_onnx(folder / "model.onnx"), qdeq.dequantize_onnx(small_model()))


def test_a_model_in_memory_with_data_elsewhere_is_refused(tmp_path):
    made = onnx.load(save_apart(small_model(), tmp_path), load_external_data=False)
    with pytest.raises(qdeq.QdeqValueError, match="expected values in the model itself, got external data"):
        qdeq.dequantize_onnx(made)


@pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "no graph"])
def test_what_is_no_model(tmp_path, kind):
    path = tmp_path / "model.onnx"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes({"empty": b"", "text": b"no model at all", "no graph": b"\x08\x08"}[kind])
    with pytest.raises(qdeq.QdeqValueError, match="model.onnx: expected"):
        qdeq.dequantize_onnx(path, tmp_path / "float.onnx")
    assert not (tmp_path / "float.onnx").exists()


def test_constants_of_nodes_with_data_elsewhere_come_along(tmp_path):
    made = small_model()
    tensor = onnx.TensorProto(name="held", data_type=1, dims=[4])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "held.bin"), ("offset", "8"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    made.graph.node.append(onnx.helper.make_node("Constant", [], ["k"], value=tensor))
    made.graph.output.append(onnx.helper.make_tensor_value_info("k", 1, [4]))
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    np.arange(6, dtype=np.float32).tofile(tmp_path / "held.bin")
    result = qdeq.dequantize_onnx(path)
    assert run(result, feeds(), ["k"])[0].tolist() == [2, 3, 4, 5]
