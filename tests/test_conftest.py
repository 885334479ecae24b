"""What tests/conftest.py promises, seen from outside: a run of pytest of its own on two small files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import must_run

ROOT = Path(__file__).resolve().parent.parent
STATE = "torch.backends.quantized.engine, torch.get_num_threads(), torch.get_default_dtype(), torch.rand(3).tolist()"
LEAKS = f"""
import pytest, qdeq, torch
engine, other = torch.backends.quantized.engine, torch.backends.quantized.supported_engines[-1]
if other == engine:
    other = torch.backends.quantized.supported_engines[0]
fresh = None

def spoil():
    torch.backends.quantized.engine = other
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)
    qdeq.use_kernel(qdeq.kernels()[0])

def look():
    global fresh
    state = {STATE}, qdeq.current_kernel()
    fresh = fresh or state
    assert state == fresh
    assert state[0] == engine

@pytest.fixture(scope="module")
def shared():
    spoil()

def test_first():
    look()
    spoil()

def test_second():
    look()

def test_behind_a_shared_fixture(shared):
    look()
"""
SKIPS = """
import pytest

def test_tool():
    pytest.skip("hammer is not installed")

@pytest.mark.skipif(True, reason="no saw is installed")
def test_marked():
    pass

def test_machine():
    pytest.skip("needs 12 GB of free memory")

@pytest.mark.xfail(reason="hammer is not installed")
def test_expected():
    assert False
"""


@pytest.fixture
def outcome(tmp_path):
    """Run a file under tests/conftest.py: pytest's last line."""
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")

    def run(text, **environment):
        (tmp_path / "test_it.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)]
        kept = {name: value for name, value in os.environ.items() if name not in ("QDEQ_REQUIRE", "QDEQ_KERNEL")}
        env = kept | {"PYTHONPATH": str(ROOT)} | environment
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=env, check=False)
        return done.stdout.splitlines()[-1].partition(" in ")[0]

    return run


def test_no_test_sees_what_another_changed(outcome):
    assert outcome(LEAKS, QDEQ_KERNEL="scalar") == "3 passed"


def test_a_missing_tool_is_a_failure_where_it_is_required(outcome):
    assert outcome(SKIPS, QDEQ_REQUIRE="1") == "1 failed, 1 skipped, 1 xfailed, 1 error"


@pytest.mark.parametrize(
    ("required", "hammer", "memory"), [("", False, False), ("1", True, False), ("saw hammer", True, False)]
)
def test_what_is_required(monkeypatch, required, hammer, memory):
    monkeypatch.setenv("QDEQ_REQUIRE", required)
    assert must_run("hammer is not installed") is hammer
    assert must_run("needs a tool (shop: hammer)") is hammer
    assert must_run("sledgehammer is not installed") is (required == "1")
    assert must_run("needs 12 GB of free memory") is memory
    assert must_run("no pliers are installed") is (required == "1")
