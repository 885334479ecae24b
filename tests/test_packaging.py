"""What ``pip install .`` builds, and what ``import qdeq`` costs."""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version("qdeq") == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


# ---- from the sources to an installed package ------------------------------------------------------------------------


class Built(NamedTuple):
    """A source distribution of what is checked in, a wheel made of nothing but that, and the wheel installed."""

    said: str
    sdist: list[str]
    wheel: Path
    site: Path


def run_pip(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd="/", check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    subprocess.run(
        ["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={source}/"], check=True, capture_output=True
    )
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=600, cwd="/")
    (archive,) = folder.glob("qdeq-*.tar.gz")
    said = run_pip("wheel", "-v", "--no-deps", "--wheel-dir", folder, archive)
    (wheel,) = folder.glob("qdeq-*.whl")
    run_pip("install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    with tarfile.open(archive) as tar:
        return Built(said, tar.getnames(), wheel, folder / "site")


@pytest.mark.slow
def test_nothing_of_ours_warns_when_compiled(built):
    assert not [line for line in built.said.splitlines() if re.search(r"\bcsrc/.*\bwarning:", line)]


@pytest.mark.slow
def test_what_a_distribution_holds(built):
    assert not [name for name in built.sdist if name.partition("/")[2].startswith(("tests", "benchmarks", "docs"))]
    names = zipfile.ZipFile(built.wheel).namelist()
    libraries = {name for name in names if name.endswith(".so")}
    assert libraries == {"qdeq/_C.abi3.so", f"qdeq/_torch{sysconfig.get_config_var('EXT_SUFFIX')}"}
    assert {"qdeq/py.typed", "qdeq/_C.pyi", "qdeq/_torch.pyi"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {"qdeq", f"qdeq-{version('qdeq')}.dist-info"}
    assert "-cp310-abi3-linux_" in built.wheel.name


@pytest.mark.slow
def test_a_package_made_of_the_source_distribution_works(built):
    code = """
import torch, qdeq
torch.backends.quantized.engine = "fbgemm"
q = torch._make_per_tensor_quantized_tensor(torch.arange(24, dtype=torch.int8).view(4, 6), 0.1, 3)
assert torch.equal(qdeq.dequantize(q), q.dequantize())
assert torch.equal(qdeq.dequantize(torch.ops.quantized.linear_prepack(q, None)), q.dequantize())
assert qdeq.build_info()["packed_in_place"], qdeq.build_info()
print(qdeq.__file__)
"""
    said = run_python(code, PYTHONPATH=str(built.site), PYTHONWARNINGS="ignore")
    assert Path(said).is_relative_to(built.site)


def test_a_changed_source_of_any_kind_is_built_again():
    """What the Makefile's environment is rebuilt for: every file of csrc, and what the build itself is made of."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    said = subprocess.run(["make", "-np", "demo"], capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    (line,) = (line for line in said.stdout.splitlines() if line.startswith("BUILD_INPUTS :="))
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    assert {"csrc/kernels/vector_rows.inl", "csrc/kernels/kernels.h"} <= files
    assert files | {"pyproject.toml", "setup.py", "_build/qdeq_build.py"} <= set(line.split())


def test_the_project_names_its_system_and_asks_for_no_package_that_it_does_not_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "Operating System :: POSIX :: Linux" in project["classifiers"]
    code = "\n".join(path.read_text() for path in Path(qdeq.__file__).parent.rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, flags=re.MULTILINE))
    for extra in ("cli", "plot"):
        asked_for = {re.split(r"[<>=]", package)[0] for package in project["optional-dependencies"][extra]}
        assert asked_for <= imported


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
