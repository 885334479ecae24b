"""``qdeq convert`` of a TorchScript file to an int8 ONNX model."""

from __future__ import annotations

import pytest
import torch

from tests.cli.helpers import assert_error
from tests.onnx_export.models import small

onnx = pytest.importorskip("onnx")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(small("vgg")), path)
    return path


def test_a_script_becomes_int8_onnx(run, script, tmp_path):
    status, out, err = run("convert", script, tmp_path / "model.onnx", "--input", "1x3x12x12")
    assert (status, err) == (0, "")
    assert "5 of 5 weights with their integers" in out
    assert "not in int8: nothing" in out
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 12, 12]
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in graph.initializer) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("SRC: expected an ONNX model", "--input")),
        (("--input", "3xx4"), ("--input: expected a shape such as 1x3x224x224",)),
        (("--input", "1x3:float7"), ("Dtypes are float32, int64",)),
        (("--input", "1x3x12x12", "--activations", "clamp"), ("--activations",)),
        (("--input", "1x3x12x12", "--dtype", "bfloat16"), ("no --dtype",)),
        (("--input", "1x9x12x12"), ("inputs that the model runs on",)),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(run, script, tmp_path, options, words):
    assert_error(run("convert", script, tmp_path / "model.onnx", *options), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_inputs_are_for_onnx_alone(run, script, tmp_path):
    assert_error(run("convert", script, tmp_path / "m.safetensors", "--input", "1x3x12x12"), "ends in .onnx")
