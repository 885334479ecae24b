"""Models that onnxruntime.quantization made int8; the table of docs/onnx.md has those of torchvision."""

from __future__ import annotations

import importlib

import pytest

from tests.onnx_graphs.models import onnx  # skips where it is not installed


@pytest.fixture(scope="module")
def table():
    assert onnx is not None
    return importlib.import_module("tools.onnx_table")


@pytest.fixture(scope="module")
def exported(table, tmp_path_factory):
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = table.export(name, tmp_path_factory.mktemp(name))
        return kept[name]

    return get


SLICE = [("small", way) for way in (0, 1, 2, 3, 4, 5, 6, 7)] + [("encoder", 1), ("encoder", 8), ("recurrent", 6)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "way"), SLICE)
def test_the_float_model_comes_back(table, exported, name, way):
    path, inputs = exported(name)
    found = table.measure(path, table.WAYS[way], inputs)
    assert found.weights > 0
    assert found.equal_weights == found.weights
    assert found.activations == found.original_activations
    assert found.difference < 1e-6
