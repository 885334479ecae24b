"""The shell around the commands: help, errors, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import qdeq
from qdeq.cli.console import rate_text, size_text
from tests.cli.helpers import assert_error


def test_help_without_arguments(run):
    status, out, err = run()
    assert (status, err) == (0, "")
    assert all(name in out for name in ("inspect", "convert", "verify", "diff", "explain", "info", "completion"))


@pytest.mark.parametrize("command", [(), ("inspect",), ("convert",), ("verify",), ("diff",), ("explain",), ("info",)])
def test_help_fits_80_columns(run, command):
    status, out, _ = run(*command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "\\b" not in out  # click's mark for lines that stay as they are, written as two characters
    assert "--debug" in out


@pytest.mark.parametrize(
    "arguments", [[], ["explain", "--help"], ["convert"], ["convert", "a", "b", "--dtype", "int3"]]
)
def test_help_and_usage_errors_do_not_import_torch(arguments):
    """It takes seconds."""
    code = f"import sys; from qdeq.cli import main; main({arguments}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_info(run):
    status, out, _ = run("info")
    assert status == 0
    assert torch.__version__ in out
    assert "avx" in out or "scalar" in out
    facts = json.loads(run("info", "--json")[1])
    assert facts["kernels"] == qdeq.kernels()
    assert facts["engines"]


def test_usage_errors_are_one_line(run):
    assert_error(run("convert"), "SRC", "qdeq convert --help")
    assert_error(run("nonsense"), "nonsense")


@pytest.mark.parametrize("where", [("--debug", "inspect", "missing"), ("inspect", "missing", "--debug")])
def test_debug_shows_the_traceback(run, where):
    status, _, err = run(*where)
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("qdeq: missing:")


def test_unforeseen_errors_are_one_line(run, monkeypatch):
    def broken(path, **options):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(qdeq, "open", broken, raising=False)
    assert_error(run("inspect", "x"), "ZeroDivisionError: oh no", "--debug")


def test_ctrl_c(run, monkeypatch, checkpoint, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qdeq.files.streaming._write_all", interrupted)
    status, out, err = run("convert", checkpoint, tmp_path / "model.safetensors")
    assert (status, out) == (130, "")
    assert err.strip() == "qdeq: stopped"
    assert os.listdir(tmp_path) == []


def test_missing_packages_are_named(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert_error(run("info"), "click, rich", 'pip install "qdeq[cli]"')


def test_sizes_and_rates():
    assert [size_text(n) for n in (0, 999, 1000, 1500, 12_345, 113_000_000, 999_600, 2 * 10**9)] == [
        "0 bytes", "999 bytes", "1.00 KB", "1.50 KB", "12.3 KB", "113 MB", "1.00 MB", "2.00 GB",
    ]  # fmt: skip
    assert rate_text(500_000_000, 0.5) == "1000 MB/s"
    assert rate_text(12_800, 0.05) == "0.26 MB/s"
