"""The two extension modules; everything else is in pyproject.toml.

``qdeq._C`` uses torch's stable ABI and Python's limited API: one file for every Python from 3.10 and every torch from
2.13 on. ``qdeq._torch`` reads torch's and fbgemm's C++ objects by their layout, so it belongs to the one torch that it
was built with. Where it cannot be built it is left out, and where fbgemm is missing it is built without the readers of
packed weights: everything then works without them, slower, with the same bits.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
OLDEST_TORCH = "0x020d000000000000"  # 2.13.0
NEEDS_NO_TORCH = {"egg_info", "dist_info", "sdist", "clean", "--version", "--name"}


def _sources(*folders: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for name in folders for path in (ROOT / "csrc" / name).glob("*.cpp"))


def _compile_args(torch_includes: list[str]) -> list[str]:
    import torch

    # -isystem: torch's headers do not pass -Wextra; ours must.  -ffp-contract=off: a fused multiply-add rounds
    # differently from torch.
    args = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
    stamp = [("TORCH", torch.__version__), ("GIT", torch.version.git_version)]
    args += [f'-DQDEQ_BUILT_WITH_{name}="{value}"' for name, value in stamp]
    return args + [flag for path in torch_includes for flag in ("-isystem", path)]


def _has_fbgemm(torch_includes: list[str]) -> bool:
    import torch

    if platform.machine() not in ("x86_64", "AMD64") or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    header = "ATen/native/quantized/cpu/fbgemm_utils.h"
    return any((Path(path) / header).exists() for path in torch_includes)


def _this_torch(includes: list[str]) -> Any:
    from torch.utils.cpp_extension import CppExtension

    sources, flags, own = _sources("this_torch", "packing"), _compile_args(includes), [str(ROOT / "csrc")]
    if _has_fbgemm(includes):
        own.append(str(ROOT / "csrc/this_torch/asmjit_stub"))
        flags += ["-DUSE_FBGEMM", "-DQDEQ_WITH_FBGEMM"]
    else:
        print("qdeq: this torch has no fbgemm: packed weights will be unpacked by torch, slower", file=sys.stderr)
        sources = [f"csrc/this_torch/{name}.cpp" for name in ("module", "small")]
    # Its pybind11 is the one that torch brings: another version would not see the classes that torch has bound with it.
    extension = CppExtension(
        "qdeq._torch", [*sources, "csrc/common/strides.cpp"], include_dirs=own, extra_compile_args=flags
    )
    extension.optional = True
    return extension


def _core(includes: list[str]) -> Any:
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "qdeq._C",
        _sources("kernels", "common", "stable"),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=[*_compile_args(includes), f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}"],
        py_limited_api=True,
    )


def _build_command() -> Any:
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):  # type: ignore[misc]
        """An optional extension that does not compile is reported and left out; nothing stale stays behind."""

        def run(self) -> None:
            for folder in [Path(self.build_lib), *([ROOT] if self.inplace else [])]:
                for name in ("_C", "_torch", "_direct", "_fbgemm"):  # the last two were built by qdeq 0.1.0
                    for stale in (folder / "qdeq").glob(f"{name}.*.so"):
                        stale.unlink()
            super().run()

        def build_extension(self, ext: Any) -> None:
            try:
                super().build_extension(ext)
            except RuntimeError as error:
                if not ext.optional:
                    raise
                print(f"qdeq: {ext.name} does not build against torch {torch.__version__}: {error}", file=sys.stderr)
                print("qdeq: works without it: slower, same bits", file=sys.stderr)

    return Build


def main() -> None:
    try:
        from torch.utils.cpp_extension import include_paths
    except ImportError:
        if not NEEDS_NO_TORCH.intersection(sys.argv):
            raise
        setup()
        return
    includes = include_paths()
    setup(
        ext_modules=[_core(includes), _this_torch(includes)],
        cmdclass={"build_ext": _build_command()},
        # One wheel holds _C for every Python, and a _torch that others than its own leave alone.
        options={"bdist_wheel": {"py_limited_api": "cp310"}},
    )


main()
