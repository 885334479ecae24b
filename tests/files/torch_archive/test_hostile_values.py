"""Integers, names and nesting that no checkpoint has: one QdeqError, at once."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest

from tests.files.torch_archive.test_hostile import good, refused, repacked  # noqa: F401 (a fixture)

DIGITS = (10**6 * b"\x7f") + b"\x01"
HUGE = b"\x8b" + struct.pack("<i", len(DIGITS)) + DIGITS


def part(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def tensor(kind: bytes = b"ctorch\nFloatStorage\n", scheme: bytes = b"") -> bytes:
    pid = b"(" + part("storage") + kind + part("0") + part("cpu") + part(6) + b"tQ"
    name, last = (b"_rebuild_qtensor", scheme + b"\x89}tR") if scheme else (b"_rebuild_tensor_v2", b"\x89}tR")
    return b"ctorch._utils\n" + name + b"\n(" + pid + part(0) + part((6,)) + part((1,)) + last


def of(*items: bytes) -> bytes:
    return b"\x80\x02}(" + b"".join(items) + b"u."


QINT8 = b"ctorch\nQInt8Storage\n"
PER_TENSOR = b"ctorch\nper_tensor_affine\n"
NESTED = b")" + b"\x85" * 100_000
TREE = b"]q\x00" + b"".join(b"](h" + bytes([at]) + b"h" + bytes([at]) + b"eq" + bytes([at + 1]) for at in range(60))

CASES = {
    "an integer for a scale": (of(part("a.scale"), HUGE, part("a.zero_point"), part(0)), "63 bits"),
    "an integer for a zero point": (of(part("a.scale"), part(1.0), part("a.zero_point"), HUGE), "63 bits"),
    "an integer for a weight's scale": (
        of(part("w"), tensor(QINT8, b"(" + PER_TENSOR + HUGE + part(0) + b"t")), "a scale"),
    "an integer for a scheme": (of(part("w"), tensor(QINT8, b"(" + HUGE + part(1.0) + part(0) + b"t")), "per_tensor"),
    "an integer for a storage type": (of(part("w"), tensor(HUGE)), "known type"),
    "deep nesting for a zero point": (
        of(part("w"), tensor(QINT8, b"(" + PER_TENSOR + part(1.0) + NESTED + b"t")), "a zero point"),
    "lists that unfold without end": (
        of(part("w"), tensor(QINT8, b"(" + PER_TENSOR + part(1.0) + TREE + b"t")), "a zero point"),
    "a name longer than any": (of(part("x" * 100_000), b"}" + part("w") + tensor() + b"s"), "1000 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_values_that_no_checkpoint_has(name: str, good: Path, tmp_path: Path) -> None:  # noqa: F811
    data, match = CASES[name]
    refused(repacked(good, tmp_path / "bad.pth", data_pkl=data), match)


def test_an_integer_for_a_key_names_nothing(good: Path, tmp_path: Path) -> None:  # noqa: F811
    refused(repacked(good, tmp_path / "bad.pth", data_pkl=of(HUGE, tensor())), "holds weights")
