"""What ``pip install .`` builds, and what ``import qdeq`` costs."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qdeq

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).resolve().parent.parent


def run_python(code: str, **env: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=os.environ | env, cwd="/"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_qdeq_is_cheap_and_pulls_in_no_extra():
    code = """
import sys, time
begin = time.process_time()
import torch
middle, before = time.process_time(), set(sys.modules)
import qdeq
print((time.process_time() - middle) / (middle - begin))
extras = {"rich", "torchvision", "sklearn", "matplotlib", "safetensors", "numpy.testing"}
assert not extras & (set(sys.modules) - before), extras & (set(sys.modules) - before)
"""
    assert statistics.median(float(run_python(code)) for _ in range(3)) < 0.05


def test_every_public_name_exists_and_is_listed():
    for name in qdeq.__all__:
        assert getattr(qdeq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = qdeq.nonsense


def test_the_version_is_the_one_of_the_project():
    from importlib.metadata import version

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version("qdeq") == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_builds_without_a_warning_from_our_files(tmp_path):
    source = tmp_path / "source"
    subprocess.run(
        ["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/"], check=True, capture_output=True
    )
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd="/",
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, output[-4000:]
    warnings = [line for line in output.splitlines() if re.search(r"\bcsrc/.*\bwarning:", line)]
    assert not warnings
    (wheel,) = tmp_path.glob("qdeq-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(re.fullmatch(r"qdeq/_C\..*\.so", name) for name in names)
    assert "qdeq/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "csrc", "benchmarks"))]


def test_setup_py_gives_metadata_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None; sys.argv = ['setup.py', '--version']; exec(open('setup.py').read())"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"__file__ = 'setup.py'; {code}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "0.1.0"
