"""Archives of ``torch.package``: read by the same reader, no code of them run."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.package import PackageExporter, package_exporter

import qdeq
from tests.files.torch_archive.conftest import Case
from tests.files.torch_archive.forms import check_equal
from tests.files.torch_archive.test_hostile import refused

Build = Callable[[str], Case]


def exported(path: Path, fill: Callable[[PackageExporter], object]) -> Path:
    with warnings.catch_warnings(), PackageExporter(path) as exporter:
        warnings.simplefilter("ignore", UserWarning)  # the exporter uses torch's own deprecated storages
        exporter.extern(["torch.**", "tests.**"])
        fill(exporter)
    return path


@pytest.mark.parametrize("name", ["vgg", "dynamic"])
def test_one_pickle_has_the_names_of_its_model(name: str, build_case: Build, tmp_path: Path) -> None:
    case = build_case(name)
    path = exported(tmp_path / "p.pt", lambda exporter: exporter.save_pickle("model", "model.pkl", case.model))
    with qdeq.open(path) as archive:
        found, _ = qdeq.dequantize_state_dict(archive)
    check_equal(found, case.expected)


def test_several_pickles_are_told_apart_by_their_names(build_case: Build, tmp_path: Path) -> None:
    """Also those whose name has no ending, beside texts and sources, which are not taken for pickles."""
    case = build_case("vgg")

    def fill(exporter: PackageExporter) -> None:
        exporter.save_pickle("tts", "model", case.model)
        exporter.save_pickle("extra.more", "scale.pkl", {"w": torch.ones(3)})
        exporter.save_text("tts", "readme.txt", "\x80 is no pickle.")
        exporter.save_binary("tts", "raw.pkl.bin", b"\x80\x02")

    with qdeq.open(exported(tmp_path / "p.pt", fill)) as archive:
        found = dict(archive)
    assert torch.equal(found.pop("extra.more.scale.w"), torch.ones(3))
    check_equal({name.removeprefix("tts.model."): value for name, value in found.items()}, case.expected)


def test_scripts_and_graphs_in_a_package(build_case: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_exporter, "_gate_torchscript_serialization", False)
    vgg, fx = build_case("vgg"), build_case("fx")
    parts = {"script": torch.jit.script(vgg.model), "fx": fx.model}
    path = exported(tmp_path / "p.pt", lambda exporter: exporter.save_pickle("all", "all.pkl", parts))
    with qdeq.open(path) as archive:
        found, _ = qdeq.dequantize_state_dict(archive)
    wanted = {f"script.{name}": value for name, value in vgg.expected.items()}
    check_equal(found, wanted | {f"fx.{name}": value for name, value in fx.expected.items()})


def test_a_package_without_pickles_is_refused_by_name(tmp_path: Path) -> None:
    path = exported(tmp_path / "p.pt", lambda exporter: exporter.save_text("a", "b.txt", "text"))
    refused(path, r"torch\.package archive that holds a pickle")


def test_damage_in_a_package_is_seen(tmp_path: Path) -> None:
    path = exported(tmp_path / "p.pt", lambda exporter: exporter.save_pickle("a", "b.pkl", {"w": torch.arange(64.0)}))
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(3.0).numpy().tobytes())
    data[at + 7] ^= 1
    path.write_bytes(data)
    refused(path, "CRC32")
