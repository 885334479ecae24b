"""``qdeq.open`` on ONNX models, and what the command line makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import qdeq
from qdeq.cli import main
from tests.files.onnx_model.cases import save_apart, small_model
from tests.onnx_graphs.models import model, node, onnx, same_bits, weights

NAMES = ["conv.weight", "fc.weight", "conv.bias", "table"]


@pytest.fixture(params=[False, True], ids=["whole", "apart"])
def path(request, tmp_path):
    if request.param:
        return save_apart(small_model(), tmp_path)
    onnx.save(small_model(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_weights_by_name(path):
    wanted = weights(qdeq.dequantize_onnx(small_model()))
    with qdeq.open(path) as opened:
        assert list(opened) == NAMES
        for name in NAMES:
            value = opened[name]
            floats = value.dequantize() if isinstance(value, qdeq.QuantizedWeight) else value
            assert same_bits(floats.numpy(), wanted[name])
        assert opened["conv.weight"].axis == 0
        assert opened["fc.weight"].dtype == "quint4x2"
        assert opened.activation_qparams == {"c": (pytest.approx(0.05), 0)}
        assert "axes" in opened.dropped
        entry = opened.entry("fc.weight")
        assert (entry.dtype, entry.source, entry.bytes) == ("quint4x2", "fc.weight_quantized", 24)
        opened.release()
        kept = opened["table"]
    assert torch.equal(kept, torch.tensor(wanted["table"]))
    with pytest.raises(qdeq.QdeqValueError, match="expected an open file, got a closed one"):
        opened["table"]


def test_a_file_of_any_name_is_known_by_its_beginning(path):
    other = path.rename(path.with_name("model.bin"))
    assert list(qdeq.open(other)) == NAMES


def test_state_dicts_and_float_models(path):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3)

    net = Net()
    _, report = qdeq.dequantize_state_dict(qdeq.open(path), into=net, strict=False)
    assert torch.equal(net.conv.weight, qdeq.open(path)["conv.weight"].dequantize())
    assert [entry.target for entry in report.entries] == ["conv.weight", "conv.bias"]


def test_weights_in_layouts_without_integers_of_their_own(tmp_path):
    """Blocks, transposed: one float tensor, and the entry says what it was."""
    rng = np.random.default_rng(0)
    held = {"B_Q4": rng.integers(0, 256, (6, 2, 16)).astype(np.uint8), "s": rng.uniform(-1, 1, 12).astype(np.float32)}
    one = node("MatMulNBits", "x B_Q4 s", "y", domain="com.microsoft", K=64, N=6, bits=4, block_size=32)
    made = model([one], {"x": (2, 64)}, ["y"], held)
    onnx.save(made, tmp_path / "m.onnx")
    opened = qdeq.open(tmp_path / "m.onnx")
    assert same_bits(opened["B"].numpy(), weights(qdeq.dequantize_onnx(made))["B"])
    entry = opened.entry("B")
    assert (entry.shape, entry.dtype, entry.qscheme) == ((64, 6), "float32", None)
    assert entry.note == "uint4, in blocks of 32, transposed"


def test_commands(path, tmp_path, capsys):
    target = tmp_path / "weights.safetensors"
    for arguments, wanted in (
        (("inspect", path), "conv.weight"),
        (("convert", path, target), "2 weights dequantized"),
        (("verify", path, target), "equal: all 4 tensors"),
        (("diff", path, target), "equal: 4 tensors"),
        (("convert", path, tmp_path / "kept.safetensors", "--keep", "int8"), "2 weights kept as integers"),
        (("verify", path, tmp_path / "kept.safetensors"), "equal: all 4 tensors"),
        (("convert", path, tmp_path / "float.onnx"), "2 weights dequantized"),
        (("diff", tmp_path / "float.onnx", target), "equal: 4 tensors"),
    ):
        assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr()
        assert wanted in capsys.readouterr().out
    assert set(load_file(target)) == set(NAMES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("float.onnx", "--keep", "int8"), "no --dtype, --shard-size, --keep"),
        (("w.safetensors", "--activations", "clamp"), "--activations: expected a DST that ends in .onnx"),
    ],
)
def test_options_that_do_not_fit(path, tmp_path, capsys, arguments, words):
    name, *options = arguments
    assert main(["convert", str(path), str(tmp_path / name), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_graph_is_only_made_from_a_graph(tmp_path, capsys):
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pth")
    assert main(["convert", str(tmp_path / "w.pth"), str(tmp_path / "w.onnx")]) == 2
    assert "SRC: expected an ONNX model" in capsys.readouterr().err
