"""Which extension may be loaded where, and what is said when one may not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import qdeq
from qdeq.weights import native as ops

PACKAGE = Path(qdeq.__file__).parent


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", code]
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)} | env
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=600, check=False)


def library(name: str) -> Path:
    (path,) = PACKAGE.glob(f"{name}.*.so")
    return path


# ---- qdeq._C: everywhere ---------------------------------------------------------------------------------------------


def test_the_core_says_what_to_do_where_it_does_not_load():
    done = run("import sys; sys.modules['qdeq._C'] = None; import qdeq; qdeq.dequantize")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: qdeq: expected its extension qdeq._C, got none that loads into torch")
    assert "pip install ." in last


def test_the_core_needs_neither_one_python_nor_one_torch():
    assert library("_C").name == "_C.abi3.so"
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    said = subprocess.run(["nm", "-D", "--undefined-only", library("_C")], capture_output=True, text=True, check=True)
    wanted = [line.split()[-1].partition("@")[0] for line in said.stdout.splitlines()]
    assert not [name for name in wanted if re.match(r"_ZN?K?(2at|3c10|5torch)", name)], "torch's C++ is not stable"
    private = {name for name in wanted if name.startswith("_Py")}
    assert private <= {"_Py_Dealloc", "_Py_NoneStruct"}, "not in Python's limited API"


def test_the_kernels_are_there_once():
    names = [f"{name}\0".encode() for name in qdeq.kernels()]
    core, this_torch = library("_C").read_bytes(), library("_torch").read_bytes()
    assert all(name in core for name in names)
    assert not any(name in this_torch for name in names)


# ---- qdeq._torch: in one torch ---------------------------------------------------------------------------------------

# Changes what qdeq._C says of its build when it is imported, which importing qdeq does.
STAMP = """
import importlib.machinery
import sys
import torch

class Stamped:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != "qdeq._C":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), setattr(module, "{name}", "{value}"))
        return spec

sys.meta_path.insert(0, Stamped)
"""

UNPACKED = """
import sys
import torch
import qdeq
torch.backends.quantized.engine = "fbgemm"
torch.manual_seed(0)
zero_point = torch.zeros(30, dtype=torch.long)
q = torch.quantize_per_channel(torch.randn(30, 50), torch.rand(30) + 0.1, zero_point, 0, torch.qint8)
want = q.dequantize().view(torch.int32)
assert torch.equal(qdeq.dequantize(torch.ops.quantized.linear_prepack(q, None)).view(torch.int32), want)
assert torch.equal(qdeq.dequantize(q).view(torch.int32), want)
assert "qdeq._torch" not in sys.modules
assert qdeq.build_info()["packed_in_place"] is False
print(qdeq.build_info()["packed_in_place_why_not"])
"""


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("built_with_torch", "9.9.9+cpu", "qdeq was built with torch 9.9.9+cpu, this is torch"),
        ("built_with_torch", torch.__version__.partition("+")[0] + "+another", "+another, this is torch"),
        ("built_with_git", "0123abc", "of commit 0123abc, this is the one of commit"),
    ],
    ids=["version", "local part", "commit"],
)
def test_another_torch_never_loads_it(name, value, words):
    done = run(STAMP.format(name=name, value=value) + UNPACKED)
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


def test_one_of_another_build_is_refused(tmp_path):
    """A file that an older build left behind: `qdeq info` says so first, and everything works."""
    copy = shutil.copytree(PACKAGE, tmp_path / "qdeq", ignore=shutil.ignore_patterns("__pycache__"))
    stale = copy / library("_torch").name
    commit = torch.version.git_version.encode()
    stale.write_bytes(library("_torch").read_bytes().replace(commit, commit[::-1]))
    done = run(UNPACKED, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"it is of another build, for torch {torch.__version__} {commit[::-1].decode()}" in done.stdout
    info = run("from qdeq.cli import main; main(['info'])", PYTHONPATH=str(tmp_path), COLUMNS="400")
    first = info.stdout.splitlines()[1]
    assert first.startswith("packed weights")
    assert "16 to 36 times" in first
    assert "it is of another build" in first


def test_info_begins_with_packed_weights(capsys):
    from qdeq.cli import main

    main(["info"])
    assert re.match(r"packed weights +read in place$", capsys.readouterr().out.splitlines()[1])


def linear():
    q = torch._make_per_tensor_quantized_tensor(torch.ones(4, 8, dtype=torch.int8), 0.1, 0)
    return torch.ops.quantized.linear_prepack(q, None)


@pytest.mark.parametrize(
    ("extension", "why", "words"),
    [
        (None, "the extension qdeq._torch was not built", "was not built"),
        (types.SimpleNamespace(reads_packed_weights=False), "", "without fbgemm"),
    ],
    ids=["missing", "without fbgemm"],
)
def test_packed_weights_are_unpacked_without_it(monkeypatch, extension, why, words):
    monkeypatch.setattr(ops, "this_torch", extension)
    monkeypatch.setattr(ops, "_why_not_loaded", why)
    facts = qdeq.build_info()
    assert facts["packed_in_place"] is False
    assert words in str(facts["packed_in_place_why_not"])
    assert torch.equal(qdeq.dequantize(linear()), torch.full((4, 8), 0.1))
