"""Values out of a file: worded in one line, whatever they are."""

from __future__ import annotations

import struct
import zipfile

import pytest
import torch

import qdeq
from qdeq.files.torch_archive.pickled import Global
from qdeq.files.untrusted import is_size, shown

HUGE = 10**5000  # Python refuses to write it out


def test_a_value_is_shown_in_one_line():
    for value, text in (
        ("a\nb\x1b", r"'a\nb\x1b'"),
        ("é" * 100, "'" + (r"\xe9" * 20)[:76] + "..."),
        (2**127, str(2**127)),
        (2**200, "an integer of more than 128 bits"),
        (HUGE, "an integer of more than 128 bits"),
        ([HUGE], "[an integer of more than 128 bits]"),
        ((1, None, 0.5, b"\xff"), r"(1, None, 0.5, b'\xff')"),
        ({"a": HUGE}, "{'a': an integer of more than 128 bits}"),
        (object(), "a object"),
        (True, "True"),
    ):
        assert shown(value) == text
        assert len(text) <= 80


def test_a_value_that_unfolds_without_end_is_shown_at_once():
    doubled, deep = [], ()
    for _ in range(60):
        doubled = [doubled, doubled]
    for _ in range(100_000):
        deep = (deep,)
    for value in (
        doubled,
        deep,
        [*"ab"] * 1_000_000,
        "x" * 10_000_000,
        b"x" * 10_000_000,
        {1: doubled},
        Global("a", "b"),
    ):
        assert 0 < len(shown(value)) <= 80


def test_sizes():
    assert [is_size(value) for value in (0, 2**63 - 1)] == [True, True]
    assert not any(is_size(value) for value in (-1, 2**63, True, 1.0, "1", None, HUGE))


def test_an_integer_of_thousands_of_digits_in_a_file(tmp_path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"w": torch.zeros(3)}, good)
    digits = HUGE.to_bytes(2100, "little", signed=True)
    sizes, wrong = b"K\x03\x85", b"\x8b" + struct.pack("<i", len(digits)) + digits + b"\x85"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        for record in old.infolist():
            data = old.read(record)
            if record.filename.endswith("data.pkl"):
                assert data.count(sizes) == 1
                data = data.replace(sizes, wrong)
            new.writestr(record.filename, data)
    with pytest.raises(qdeq.QdeqValueError, match=r"bad\.pth: .* got \(an integer of more than 128 bits,\)"):
        dict(qdeq.open(bad))
