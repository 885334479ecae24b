"""The three extension modules; everything else is in pyproject.toml.

``qdeq._C`` uses torch's stable ABI and runs with every torch from 2.13 on. ``qdeq._direct`` and ``qdeq._fbgemm`` read
torch's and fbgemm's C++ objects by their layout, so they belong to the one torch that they were built with, and are
left out where they cannot be built: everything then works without them, slower, with the same bits.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

from setuptools import setup

ROOT = Path(__file__).resolve().parent
STABLE_ABI_TARGET = "0x020d000000000000"  # torch 2.13.0
CORE = ("limits", "memory", "module", "ops")
DIRECT = ("direct", "memory")
PACKED = ("batch", "fbgemm_module", "memory", "packed_read", "packed_weight")
NEEDS_NO_TORCH = {"egg_info", "dist_info", "sdist", "clean", "--version", "--name"}


def _sources(*patterns: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


def _compile_args(torch_includes: list[str]) -> list[str]:
    # -isystem: torch's headers do not pass -Wextra; ours must.  -ffp-contract=off: a fused multiply-add rounds
    # differently from torch.
    args = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
    return args + [flag for path in torch_includes for flag in ("-isystem", path)]


def _has_fbgemm(torch_includes: list[str]) -> bool:
    import torch

    if platform.machine() not in ("x86_64", "AMD64") or "fbgemm" not in torch.backends.quantized.supported_engines:
        return False
    header = "ATen/native/quantized/cpu/fbgemm_utils.h"
    return any((Path(path) / header).exists() for path in torch_includes)


def _extensions() -> tuple[list[Any], dict[str, Any]]:
    import pybind11
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    class BuildWithOptional(BuildExtension):  # type: ignore[misc]
        """An optional extension that does not compile is reported and left out; nothing stale stays behind."""

        def build_extension(self, ext: Any) -> None:
            try:
                super().build_extension(ext)
            except RuntimeError as error:
                if not ext.optional:
                    raise
                for stale in (self.get_ext_fullpath(ext.name), ROOT / self.get_ext_filename(ext.name)):
                    Path(stale).unlink(missing_ok=True)
                print(
                    f"qdeq: {ext.name} does not build against torch {torch.__version__}: {error}",
                    file=sys.stderr,
                )
                print("qdeq: works without it: slower, same bits", file=sys.stderr)

        def copy_extensions_to_source(self) -> None:
            built = [e for e in self.extensions if Path(self.build_lib, self.get_ext_filename(e.name)).exists()]
            self.extensions = built
            super().copy_extensions_to_source()

    includes = include_paths()
    flags = _compile_args(includes)
    built_with = f'-DQDEQ_BUILT_WITH_TORCH="{torch.__version__}"'
    core = CppExtension(
        "qdeq._C",
        _sources("csrc/kernels/*.cpp", *(f"csrc/{name}.cpp" for name in CORE)),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        extra_compile_args=[*flags, f"-DTORCH_TARGET_VERSION={STABLE_ABI_TARGET}", built_with],
    )
    core.libraries.remove("torch_python")  # not part of the stable ABI
    # The others look into torch's own objects. Their pybind11 is the one that torch brings: another version would not
    # see the classes that torch has bound with it.
    direct = CppExtension(
        "qdeq._direct",
        _sources("csrc/kernels/*.cpp", *(f"csrc/{name}.cpp" for name in DIRECT)),
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
    )
    extensions = [core, direct]
    if _has_fbgemm(includes):
        packed = CppExtension(
            "qdeq._fbgemm",
            _sources("csrc/kernels/*.cpp", "csrc/packed/*.cpp", *(f"csrc/{name}.cpp" for name in PACKED)),
            include_dirs=[str(ROOT / "csrc"), str(ROOT / "csrc/packed/asmjit_stub")],
            extra_compile_args=[*flags, "-DUSE_FBGEMM", built_with],
        )
        extensions.append(packed)
    for extension in extensions[1:]:
        extension.optional = True
    return extensions, {"build_ext": BuildWithOptional}


def main() -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        if not NEEDS_NO_TORCH.intersection(sys.argv):
            raise
        setup()
        return
    extensions, commands = _extensions()
    setup(ext_modules=extensions, cmdclass=commands)


main()
