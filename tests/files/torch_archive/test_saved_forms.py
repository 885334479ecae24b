"""Every form that torch saves a model in gives the live model's bits, with and without torch's quantized dtypes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdeq
from tests.files.torch_archive.conftest import Case
from tests.files.torch_archive.forms import FORMS, FROZEN, check_equal, check_form, save


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_live_bits(case: Case, form: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    check_form(case.model, form, path, case.expected)
    prefix = "model." if form == "nested" else ""
    with qdeq.open(path) as archive:
        check_equal({name.removeprefix(prefix): archive[name] for name in archive}, case.expected)


@pytest.mark.parametrize("name", ["vgg", "vgg_bn", "fx"])
def test_frozen_script_holds_its_weights_as_constants(name: str, build_case, tmp_path: Path) -> None:
    case = build_case(name)
    check_form(case.model, FROZEN, tmp_path / "frozen.pt", case.expected)


_WITHOUT = """
import sys, pickle
import torch
names = ["qint8", "quint8", "qint32", "quint4x2", "quint2x4", "QInt8Storage", "QUInt8Storage", "QInt32Storage",
         "quantize_per_tensor", "quantize_per_channel", "_empty_affine_quantized", "load", "per_tensor_affine",
         "per_channel_affine", "per_channel_affine_float_qparams", "per_tensor_symmetric", "per_channel_symmetric"]
for name in names:
    if hasattr(torch, name):
        delattr(torch, name)
for name in [m for m in sys.modules if m == "torch.ao" or m.startswith("torch.ao.")]:
    del sys.modules[name]
class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[:2] == ["torch", "ao"] or name.startswith("tests"):
            raise ImportError("forbidden: " + name)
sys.meta_path.insert(0, Forbidden())
import qdeq
for path, out in zip(sys.argv[1::2], sys.argv[2::2]):
    with qdeq.open(path) as archive:
        archive.describe(), archive.report.to_json()
        values = {n: (v.dequantize() if isinstance(v, qdeq.QuantizedWeight) else v) for n, v in archive.items()}
        again, _ = qdeq.dequantize_state_dict(archive)
        qdeq.save_safetensors(archive, out + ".safetensors")
        for other in (again, qdeq.open(out + ".safetensors")):
            assert other.keys() == values.keys()
            assert all(torch.equal(other[n].view(torch.int32), v.float().view(torch.int32)) for n, v in values.items())
    with open(out, "wb") as file:
        pickle.dump({n: v.float().contiguous().view(torch.int32).numpy().tobytes() for n, v in values.items()}, file)
"""


def test_without_quantized_dtypes_and_torch_ao(build_case, tmp_path: Path) -> None:
    import pickle

    arguments: list[str] = []
    expected = []
    for name in ("vgg_bn", "dynamic", "embedding", "fx"):
        for form in ("state_dict", "whole", "script", "legacy"):
            path = tmp_path / f"{name}_{form}.pt"
            save(build_case(name).model, form, path)
            arguments += [str(path), str(path) + ".out"]
            expected.append(build_case(name).expected)
    done = subprocess.run([sys.executable, "-c", _WITHOUT, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for out, values in zip(arguments[1::2], expected, strict=True):
        found = pickle.loads(Path(out).read_bytes())
        assert found == {n: v.float().contiguous().view(torch.int32).numpy().tobytes() for n, v in values.items()}


def test_activation_scales_are_kept_apart(build_case, tmp_path: Path) -> None:
    case = build_case("vgg")
    torch.save(case.model.state_dict(), tmp_path / "model.pth")
    archive = qdeq.open(tmp_path / "model.pth")
    first = case.model.features[0]
    assert archive.activation_qparams["features.0"] == pytest.approx((first.scale, first.zero_point), rel=1e-6)
    assert set(archive.activation_qparams) >= {"quant", "features.0", "classifier.0"}
    assert not any("scale" in name or "zero_point" in name for name in archive)


def test_fx_activation_scales(build_case, tmp_path: Path) -> None:
    torch.save(build_case("fx").model.state_dict(), tmp_path / "model.pth")
    assert "_input_0" in qdeq.open(tmp_path / "model.pth").activation_qparams


def test_entries_are_listed_without_reading_values(build_case, tmp_path: Path) -> None:
    case = build_case("vgg")
    torch.save(case.model.state_dict(), tmp_path / "model.pth")
    entries = {entry.name: entry for entry in qdeq.open(tmp_path / "model.pth").describe()}
    weight = case.model.features[0].weight()
    entry = entries["features.0.weight"]
    assert (entry.shape, entry.dtype, entry.qscheme, entry.axis) == ((8, 3, 3, 3), "qint8", "per_channel_affine", 0)
    assert entry.scale_min == weight.q_per_channel_scales().min()
    assert entry.scale_max == weight.q_per_channel_scales().max()
    assert entry.bytes == 8 * 27
    assert entries["classifier.0.bias"].dtype == "float32"


def test_weights_outlive_the_archive_and_never_change_the_file(build_case, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(build_case("vgg").model.state_dict(), path)
    before = path.read_bytes()
    with qdeq.open(path) as archive:
        bias = archive["features.0.bias"]
    assert isinstance(bias, Tensor)
    bias.zero_()
    assert path.read_bytes() == before
    with pytest.raises(qdeq.QdeqValueError, match="open archive"):
        archive["features.0.bias"]


def test_report_names_every_source(build_case, tmp_path: Path) -> None:
    case = build_case("vgg")
    torch.save(case.model.state_dict(), tmp_path / "model.pth")
    report = qdeq.open(tmp_path / "model.pth").report
    assert {entry.target for entry in report.entries} == set(case.expected)
    assert {e.source for e in report.entries if e.target.startswith("classifier.0")} == {
        "classifier.0._packed_params._packed_params"
    }
    assert "features.0" in report.to_json()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_of_packed_convolutions(version: int) -> None:
    """The state is replaced in the pickle's description: torch itself writes version 2 only."""
    from qdeq.files.torch_archive import checkpoint
    from qdeq.files.torch_archive.contents import Contents
    from qdeq.files.torch_archive.pickled import Call, Global, Instance, Persistent
    from qdeq.files.torch_archive.storages import StorageReader

    def tensor(key: str, shape: tuple[int, ...]) -> Call:
        storage = Persistent(("storage", Global("torch", "FloatStorage"), key, "cpu", 16))
        strides = tuple(torch.empty(shape).stride())
        return Call(Global("torch._utils", "_rebuild_tensor_v2"), (storage, 0, shape, strides, False, {}))

    weight, bias = tensor("0", (2, 2, 2, 2)), tensor("1", (2,))
    states = {
        1: (weight, bias, [], [], [], [], []),
        2: ("2", [tensor("2", (11,)), weight], [bias]),
        3: (3, [2, 1, 1], [None, weight, bias]),
    }
    top = {"conv": Instance(Global("__torch__.torch.classes.quantized", "Conv2dPackedParamsBase"), (), states[version])}
    reader = StorageReader("file", lambda key: 64, lambda key: bytearray(64))
    contents = Contents()
    checkpoint.collect("file", top, reader, "", contents)
    packed = contents.sources["conv"]
    assert packed.weight.shape == (2, 2, 2, 2)
    assert packed.bias.shape == (2,)
