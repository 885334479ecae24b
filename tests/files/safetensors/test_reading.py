"""Reading safetensors files, whoever wrote them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import qdeq
from qdeq.errors import QdeqValueError
from qdeq.files.safetensors.format import encode_header
from tests.helpers.tensors import random_quantized


def header(entries, **metadata):
    text = json.dumps({**entries, **({"__metadata__": metadata} if metadata else {})}).encode()
    return len(text).to_bytes(8, "little") + text


def tensor(begin, end, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a safetensors file, got 0 bytes"),
        (b"\x05" + b"\0" * 8, "a safetensors file, got 9 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "a header of at most 2 bytes"),
        (header({"a": tensor(0, 4)}), "4 bytes of data, as the header says, got 0"),
        (header({"a": tensor(0, 4), "b": tensor(2, 6)}) + b"123456", "data that begins at byte 4, got 2"),
        (header({"a": tensor(4, 8)}) + b"12345678", "data that begins at byte 0, got 4"),
        (header({"a": tensor(0, 8)}) + b"12345678", "4 bytes for F32"),
        (header({"a": tensor(0, 4, "F5")}) + b"1234", "a dtype of"),
        (header({"a": tensor(0, 4, shape=(-1,))}) + b"1234", "a shape of sizes"),
        (header({"a": tensor(0, 4, shape=(2**62, 2**62))}) + b"1234", "bytes for F32"),
        (header({"a": 5}) + b"1234", "dtype, shape and data_offsets"),
        (b"\x0a" + b"\0" * 7 + b'{"a":1,"a"', "expected JSON"),
        ((40_000).to_bytes(8, "little") + b"[" * 40_000, "expected JSON"),
        (header({}, **{"qdeq.weights": '{"w": {}}'}), "dtype, qscheme, axis and shape"),
        (
            header({}, **{"qdeq.weights": '{"w": {"dtype": "qint8", "qscheme": "x", "axis": 0, "shape": [1]}}'}),
            "expected a tensor 'w', got none",
        ),
    ],
)
def test_damaged_headers_are_refused(tmp_path, data, message):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    with pytest.raises(qdeq.QdeqValueError, match=message) as caught:
        qdeq.open(path)
    assert "bad.safetensors" in str(caught.value)


@pytest.mark.parametrize("shard", ["../a.safetensors", "/etc/passwd", "", 5, "missing.safetensors"])
def test_an_index_names_files_beside_it(tmp_path, shard):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(qdeq.QdeqValueError, match=r"index\.json|missing\.safetensors"):
        qdeq.open(path)


def test_kept_weights_that_contradict_themselves(tmp_path):
    path = tmp_path / "model.safetensors"
    q = random_quantized((4, 3), torch.qint8, 0, torch.Generator().manual_seed(1))
    qdeq.save_safetensors({"w": q}, path, keep="int8")
    path.write_bytes(path.read_bytes().replace(rb"\"axis\":0", rb"\"axis\":7"))
    with qdeq.open(path) as back, pytest.raises(qdeq.QdeqValueError, match=r"model\.safetensors: 'w': .*axis"):
        back["w"]


def test_unaligned_data_is_read(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(3, dtype=torch.uint8), "b": torch.randn(5)}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])
    with qdeq.open(path) as back:
        assert torch.equal(back["b"], load_file(path)["b"])
        assert torch.equal(back["a"], load_file(path)["a"])


def test_tensors_outlive_the_file_and_do_not_write_to_it(tmp_path):
    path = tmp_path / "model.safetensors"
    qdeq.save_safetensors({"a": torch.ones(3)}, path)
    with qdeq.open(path) as back:
        a = back["a"]
    a += 1
    assert a.tolist() == [2, 2, 2]
    assert load_file(path)["a"].tolist() == [1, 1, 1]
    with pytest.raises(qdeq.QdeqValueError, match="an open file, got a closed one"):
        back["a"]


def test_released_memory_is_read_again(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {"a": torch.randn(5000), "b": torch.randn(5000)}
    qdeq.save_safetensors(weights, path)
    torch.save(weights, tmp_path / "model.pth")
    for name in ("model.safetensors", "model.pth"):
        with qdeq.open(tmp_path / name) as back:
            a = back["a"]
            back.release()
            assert torch.equal(a, weights["a"])
            assert torch.equal(back["b"], weights["b"])


def test_header_begins_data_at_a_multiple_of_8():
    for length in range(9):
        assert len(encode_header([], {"x": "y" * length})) % 8 == 0


@pytest.mark.parametrize("wrong", [{}, {"fc.activation_scale": torch.tensor(1.0)}])
def test_activations_that_the_file_does_not_hold(tmp_path, wrong):
    path = tmp_path / "model.safetensors"
    save_file({"fc.weight": torch.zeros(2), **wrong}, path, {"qdeq.activations": '{"fc": {}}'})
    with pytest.raises(QdeqValueError, match=r"fc\.activation_scale.*expected F64 and I64 of shape \[\]"):
        qdeq.open(path)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(tmp_path, scale):
    path = tmp_path / "model.safetensors"
    tensors = {"fc.activation_scale": torch.tensor(scale).double(), "fc.activation_zero_point": torch.tensor(3)}
    save_file(tensors, path, {"qdeq.activations": '{"fc": {}}'})
    with pytest.raises(QdeqValueError, match=r"fc\.activation_scale.*expected a finite number"):
        qdeq.open(path)


def test_activations_in_shards_and_in_the_model_itself(tmp_path):
    torch.manual_seed(1)
    weight = torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 2, torch.quint8)
    torch.save({"weight": weight, "scale": torch.tensor(0.25), "zero_point": torch.tensor(7)}, tmp_path / "one.pth")
    with qdeq.open(tmp_path / "one.pth") as source:
        qdeq.save_safetensors(source, tmp_path / "one.safetensors", keep="int8", shard_size=1)
    with qdeq.open(tmp_path / "one.safetensors") as file:
        assert len(file.files) == 4  # weight, scale, zero point, index
        assert list(file) == ["weight"]
        assert file.activation_qparams == {"": (0.25, 7)}
        assert qdeq.dequantize_state_dict(file)[1].activation_qparams == {"": (0.25, 7)}
