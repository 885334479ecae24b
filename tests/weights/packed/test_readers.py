"""The readers of packed weights compiled on their own, without torch, under sanitizers where they are installed."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

import qdeq
from tests.helpers.native import SANITIZE, build_and_run, can_sanitize

PROGRAM = Path(__file__).with_name("check_readers.cpp")


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="fbgemm packs on x86 only")
def test_readers_follow_the_formula_and_stay_inside(tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    flags = SANITIZE if can_sanitize("g++", tmp_path) else []
    said = build_and_run("g++", PROGRAM, tmp_path, folders=["kernels", "packing"], flags=flags)
    assert [line.partition(":")[0] for line in said.splitlines()[1:]] == qdeq.kernels()
