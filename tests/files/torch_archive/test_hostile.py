"""Damaged and hostile files: one QdeqError that names file and key. The fuzzer's files, and each trap by itself."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import qdeq

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.pth"
    torch.save({"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}, path)
    return path


def repacked(source: Path, target: Path, **replace: bytes) -> Path:
    """Write the archive again with records replaced, checksums right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            name = info.filename.split("/", 1)[1]
            new.writestr(info.filename, replace.get(name.replace(".", "_").replace("/", "_"), old.read(info)))
    return target


def refused(path: Path, match: str) -> None:
    with pytest.raises(qdeq.QdeqError, match=match) as caught:
        dict(qdeq.open(path))
    assert path.name in str(caught.value)


def test_fuzz_slice() -> None:
    script = ROOT / "fuzz" / "fuzz_archive.py"
    done = subprocess.run(
        [sys.executable, script, "--count", "300", "--seed", "7"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 files, 0 failures" in done.stdout


def test_a_global_that_runs_commands_is_refused_and_not_run(good: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    call = b"\x80\x02cos\nsystem\n" + pickle.dumps((f"touch {marker}",), 2)[2:-1] + b"R."
    refused(repacked(good, tmp_path / "bad.pth", data_pkl=call), r"bad.pth: data.pkl: .*os.system")
    assert not marker.exists()


def test_nothing_is_imported(good: Path, tmp_path: Path) -> None:
    (tmp_path / "trap_module.py").write_text("raise SystemExit('imported')")
    data = b"\x80\x02}X\x01\x00\x00\x00wctrap_module\nThing\n)\x81s."
    sys.path.insert(0, str(tmp_path))
    try:
        refused(repacked(good, tmp_path / "bad.pth", data_pkl=data), "holds weights")
    finally:
        sys.path.remove(str(tmp_path))
    assert "trap_module" not in sys.modules


def test_bit_flip_in_data_is_caught(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    at = bytes(data).index(struct.pack("<2f", 1.0, 2.0))
    data[at] ^= 4
    bad = tmp_path / "flipped.pth"
    bad.write_bytes(data)
    refused(bad, "CRC32")


def test_missing_checksum_is_a_warning(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as archive:
        info = archive.getinfo("good/data/0")
    crc = struct.pack("<I", info.CRC)
    while crc in data:
        at = bytes(data).index(crc)
        data[at : at + 4] = bytes(4)
    path = tmp_path / "unchecked.pth"
    path.write_bytes(data)
    archive = qdeq.open(path)
    assert torch.equal(archive["a.weight"], torch.arange(6.0).reshape(2, 3))
    assert any("CRC32" in text for text in archive.warnings)
    assert any("CRC32" in text for text in archive.report.notes[""])


def tensor_pickle(offset: object, shape: object, stride: object, count: object = 6, key: object = "0") -> bytes:
    def part(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    pid = b"(" + part("storage") + b"ctorch\nFloatStorage\n" + part(key) + part("cpu") + part(count) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + part(offset) + part(shape) + part(stride) + b"\x89}tR"
    return b"\x80\x02}X\x08\x00\x00\x00a.weight" + call + b"s."


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0, (2, 3), (0, 1)), "repeat"),
        ((0, (65536, 65664), (0, 0)), "repeat"),
        ((-1, (2,), (1,)), "offset"),
        ((0, (2,), (-1,)), "stride"),
        ((1, (2, 3), (3, 1)), "at most 6 values"),
        ((0, (2**62, 4), (4, 1)), "2..63"),
        ((2**63 - 1, (2,), (1,)), "at most 6 values"),
        ((0, (2, 3), (1,)), "as many strides"),
        ((0, (7,), (1,), 7), "28 bytes"),
        ((0, (2,), (1,), 2, "99"), "a record for storage"),
        ((0, (2, 2), (1, 1)), "repeat"),
    ],
)
def test_layouts_that_do_not_fit(good: Path, tmp_path: Path, arguments: tuple[object, ...], match: str) -> None:
    bad = repacked(good, tmp_path / "bad.pth", data_pkl=tensor_pickle(*arguments))
    refused(bad, rf"bad.pth: a.weight: .*{match}")


def quantized_pickle(monkeypatched: str, value: object) -> bytes:
    """A state dict of one per channel tensor with one number of its pickle replaced."""
    scales = torch.tensor([0.5, 0.25], dtype=torch.float64)
    zero_points = torch.tensor([0, 300 if monkeypatched == "zero_point" else 0])
    q = torch.quantize_per_channel(torch.ones(2, 3), scales, torch.zeros(2, dtype=torch.int64), 0, torch.qint8)
    out = io.BytesIO()
    if monkeypatched == "zero_point":
        q = torch._make_per_channel_quantized_tensor(q.int_repr(), scales, zero_points, 0)
    torch.save({"w": q}, out)
    return out.getvalue()


def test_zero_point_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    path.write_bytes(quantized_pickle("zero_point", 300))
    refused(path, r"bad.pth: w: .*300")


def test_wrong_axis_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ok.pth"
    path.write_bytes(quantized_pickle("axis", 9))
    with zipfile.ZipFile(path) as archive:
        data = archive.read("archive/data.pkl" if "archive/data.pkl" in archive.namelist() else "ok/data.pkl")
    at = data.index(b"K\x00t", data.index(b"per_channel_affine"))  # the axis ends the tuple of parameters
    bad = data[:at] + b"K\x09t" + data[at + 3 :]
    refused(repacked(path, tmp_path / "bad.pth", data_pkl=bad), "axis|scales")


def test_two_records_of_a_name(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "twice.pth"
    bad.write_bytes(good.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(bad, "a") as archive:
            archive.writestr("good/data/0", bytes(24))
    refused(bad, "one record of a name")


@pytest.mark.parametrize("name", ["../escape", "/absolute", "good/../../x", "good\\x"])
def test_path_tricks(good: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / "path.pth"
    bad.write_bytes(good.read_bytes())
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(name, b"x")
    refused(bad, "relative paths")


def test_overlapping_records(good: Path, tmp_path: Path) -> None:
    data = bytearray(good.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[-1] + 42 : entries[-1] + 46] = data[entries[0] + 42 : entries[0] + 46]
    bad = tmp_path / "overlap.pth"
    bad.write_bytes(data)
    refused(bad, "overlap.pth")


def test_zip_bomb(good: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bomb.pth"
    with zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\x80\x02" + b"]" * (100 << 20) + b".")
    refused(bad, "at most")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK", b"PK\x03\x04", b"\x80\x02."])
def test_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.bin"
    path.write_bytes(content)
    refused(path, "other.bin")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none.pth", "none.pth")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "folder.pth")


@pytest.mark.parametrize("top", [{}, [1, 2], "text", {"epoch": 3}, None])
def test_a_file_without_tensors_is_an_error(tmp_path: Path, top: object) -> None:
    path = tmp_path / "empty.pth"
    torch.save(top, path)
    refused(path, "holds weights")


def test_path_of_the_wrong_type() -> None:
    with pytest.raises(qdeq.QdeqTypeError, match=r"qdeq.open: path"):
        qdeq.open({})  # type: ignore[arg-type]
