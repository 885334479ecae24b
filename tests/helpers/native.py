"""C++ of the tests: programs made of the kernels' own sources, without torch, and operators that torch loads."""

from __future__ import annotations

import random
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}"]
SANITIZE = ["-O1", "-g", "-Wno-error", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build_and_run(
    compiler: str,
    program: Path,
    tmp_path: Path,
    *,
    folders: Sequence[str] = ("kernels",),
    flags: Sequence[str] = (),
    emulator: Sequence[str] = (),
) -> str:
    """Compile ``program`` with the sources in ``folders`` of csrc, run it with a random seed; return what it says."""
    sources = [str(path) for folder in folders for path in sorted((CSRC / folder).glob("*.cpp"))]
    built = tmp_path / "program"
    subprocess.run([compiler, *FLAGS, *flags, *sources, str(program), "-o", str(built)], check=True, timeout=600)
    seed = str(random.randrange(2**31))
    done = subprocess.run([*emulator, str(built), seed], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def can_sanitize(compiler: str, tmp_path: Path) -> bool:
    """Whether the sanitizers' libraries are there."""
    source = tmp_path / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    built = tmp_path / "empty"
    if subprocess.run(
        [compiler, *SANITIZE, str(source), "-o", str(built)], capture_output=True, check=False
    ).returncode:
        return False
    return subprocess.run([str(built)], capture_output=True, check=False).returncode == 0


def load_operators(source: Path) -> None:
    """Compile a file that registers operators on fbgemm's classes, and load it; kept in build/ for the next run."""
    from torch.utils import cpp_extension

    folder = ROOT / "build" / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on the compiler
        cpp_extension.load(
            source.stem,
            [str(source)],
            extra_cflags=["-std=c++20", "-O1", "-DUSE_FBGEMM"],
            extra_include_paths=[str(CSRC / "this_torch/asmjit_stub")],
            build_directory=str(folder),
            is_python_module=False,
        )
