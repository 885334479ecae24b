"""The kernel files compiled on their own, without torch: here, with another compiler, and for aarch64 under qemu."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

import qdeq

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*sorted((ROOT / "csrc/kernels").glob("*.cpp")), ROOT / "tests/kernels/check_kernels.cpp"]
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]


def build_and_run(compiler, tmp_path, *, link=(), emulator=()):
    program = tmp_path / "check_kernels"
    subprocess.run([compiler, *FLAGS, *link, *map(str, SOURCES), "-o", str(program)], check=True, timeout=300)
    seed = str(random.randrange(2**31))
    done = subprocess.run([*emulator, str(program), seed], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_every_set_of_this_machine_is_scalar(compiler, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    said = build_and_run(compiler, tmp_path)
    assert [line.partition(":")[0] for line in said.splitlines()[1:]] == qdeq.kernels()


def test_neon_under_emulation(tmp_path):
    compiler = next(
        (name for name in ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12") if shutil.which(name)), None
    )
    if compiler is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs an aarch64 cross compiler and qemu-user (Debian: g++-aarch64-linux-gnu qemu-user)")
    said = build_and_run(compiler, tmp_path, link=["-static"], emulator=["qemu-aarch64"])
    assert "neon: same as scalar" in said
