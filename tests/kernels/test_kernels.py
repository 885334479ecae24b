"""The kernel files compiled on their own, without torch: here, with another compiler, and for aarch64 under qemu."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import qdeq
from tests.helpers.native import SANITIZE, build_and_run, can_sanitize

PROGRAM = Path(__file__).with_name("check_kernels.cpp")


def assert_every_set_agrees(said):
    assert [line.partition(":")[0] for line in said.splitlines()[1:]] == qdeq.kernels()


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_set_of_this_machine_is_scalar(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    assert_every_set_agrees(build_and_run(compiler, PROGRAM, tmp_path))


@pytest.mark.slow
def test_nothing_outside_the_buffers_is_touched(tmp_path):
    if shutil.which("g++") is None or not can_sanitize("g++", tmp_path):
        pytest.skip("needs g++ with the address and undefined behaviour sanitizers")
    assert_every_set_agrees(build_and_run("g++", PROGRAM, tmp_path, flags=SANITIZE))


def test_neon_under_emulation(tmp_path):
    compiler = next(
        (name for name in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12") if shutil.which(name)), None
    )
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs an aarch64 cross compiler and qemu-user (Debian: g++-aarch64-linux-gnu qemu-user)")
    said = build_and_run(compiler, PROGRAM, tmp_path, flags=["-static"], emulator=["qemu-aarch64"])
    assert "neon: same as scalar" in said
