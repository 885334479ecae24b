"""What cannot be exported says so in one error, and leaves nothing behind."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor, nn

import qdeq
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError
from tests.onnx_export.models import quantized, small
from tools.models import tq

pytest.importorskip("onnx")

X = torch.randn(2, 3, 12, 12)


def refused(model: object, inputs: object, path: object, **options: object) -> str:
    with pytest.raises(QdeqError) as error:
        qdeq.to_onnx(model, inputs, path, **options)
    assert isinstance(error.value, QdeqTypeError | QdeqValueError)
    return str(error.value)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([1, 2], "example_inputs: expected a tensor, or a tuple of tensors"),
        ((), "a tensor, or a tuple of tensors"),
        (None, "a tensor, or a tuple of tensors"),
        (torch.randn(2, 4, 12, 12), "example_inputs: expected inputs that the model runs on"),
        ((X, X, X), "inputs that the model runs on"),
    ],
)
def test_inputs_that_do_not_fit(inputs, words, tmp_path):
    assert words in refused(small("vgg"), inputs, tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


def test_a_file_in_the_way_stays(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    assert "no file of this name yet" in refused(small("vgg"), X, path)
    assert path.read_text() == "mine"
    qdeq.to_onnx(small("vgg"), X, path, force=True)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("opset", [12, 22, "17", None])
def test_other_opsets(opset, tmp_path):
    assert "to_onnx: opset: expected a version from 13 to 21" in refused(small("vgg"), X, tmp_path / "m", opset=opset)


def test_paths_and_models_that_are_none(tmp_path):
    assert "to_onnx: path" in refused(small("vgg"), X, 3)
    assert "a folder to write to" in _folder_error(tmp_path / "no" / "model.onnx")
    assert "expected at least one quantized module" in refused(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "m")
    assert "expected a torch.nn.Module" in refused(3, X, tmp_path / "m")
    assert not os.listdir(tmp_path)


def _folder_error(path: object) -> str:
    with pytest.raises(QdeqError) as error:
        qdeq.to_onnx(small("vgg"), X, path)
    return str(error.value)


def test_a_prepared_model_has_no_integers_yet(tmp_path):
    model = nn.Sequential(tq.QuantStub(), nn.Linear(4, 2), tq.DeQuantStub()).eval()
    model.qconfig = tq.default_qconfig
    prepared = tq.prepare(model)
    prepared(torch.randn(4, 4))
    assert "expected" in refused(prepared, torch.randn(1, 4), tmp_path / "model.onnx")
    assert not os.listdir(tmp_path)


class _Eigenvalues(nn.Module):
    """Runs in torch, and neither exporter knows it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(self.linear(x)).real


@pytest.mark.slow
def test_what_torch_cannot_export_is_named(tmp_path):
    int8 = quantized(_Eigenvalues().eval(), torch.zeros(0))
    words = refused(int8, torch.randn(4, 4), tmp_path / "model.onnx")
    assert "a model that torch.onnx.export takes in float" in words
    assert "linalg_eig" in words
    assert not os.listdir(tmp_path)


def test_both_exporters_are_asked_and_quoted(tmp_path, monkeypatch):
    asked = []

    def export(*args: object, dynamo: bool, **options: object) -> None:
        asked.append(dynamo)
        raise RuntimeError(f"no operator for dynamo={dynamo}")

    monkeypatch.setattr(torch.onnx, "export", export)
    words = refused(small("vgg"), X, tmp_path / "model.onnx")
    assert asked == [False, True]
    assert "no operator for dynamo=False; and with dynamo=True: " in words
    assert not os.listdir(tmp_path)


def test_a_model_that_returns_no_tensors(tmp_path):
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> list[float]:
            return self.linear(x).flatten().tolist()

    int8 = quantized(Listing().eval(), torch.zeros(0))
    assert "one that returns tensors" in refused(int8, torch.randn(4, 4), tmp_path / "model.onnx")
