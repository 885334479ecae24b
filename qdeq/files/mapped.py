"""Files as memory, without reading them."""

from __future__ import annotations

import mmap
import platform
import sys
from typing import BinaryIO

__all__ = ["map_file"]

# Python names it from 3.13 on; asm-generic/mman-common.h says what it is where torch runs, but for PowerPC.
_ASM_GENERIC = platform.machine() in ("x86_64", "aarch64", "s390x", "riscv64")
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if _ASM_GENERIC else 0)


def map_file(file: BinaryIO) -> mmap.mmap:
    """Map a whole file, copy on write: tensors over it are writable, the file never is.

    Raises:
        OSError: the system cannot map it.
        ValueError: it is empty.

    """
    if sys.platform != "linux":
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    # Without it, Linux refuses to map more than memory and swap together, as if every page would be written to.
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    return mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
