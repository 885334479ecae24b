"""Opening costs nothing, however large the file is: nothing but the pickle and small records is read."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
import torch

import qdeq
from qdeq.files.mapped import map_file

GIB = 1 << 30


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def page_faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_opening_ten_gigabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    state = {f"layer{n}.weight": torch.empty(16384, 16384) for n in range(10)} | {"last.bias": torch.ones(8)}
    with torch.serialization.skip_data():  # the tensors' bytes are holes in the file
        torch.save(state, path)
    del state
    assert path.stat().st_size > 10 * GIB
    torch.save({"a": torch.ones(1)}, tmp_path / "tiny.pt")
    qdeq.open(tmp_path / "tiny.pt").close()  # imports
    before, faults = resident_bytes(), page_faults()
    with qdeq.open(path) as archive:
        entries = archive.describe()
        grown, touched = resident_bytes() - before, (page_faults() - faults) * os.sysconf("SC_PAGE_SIZE")
        small = archive["last.bias"]
    assert sum(entry.bytes for entry in entries) > 10 * GIB
    assert grown < 32 << 20, f"{grown} bytes"
    assert touched < 64 << 20, f"{touched} bytes"  # also what was given back meanwhile
    assert torch.equal(small, torch.zeros(8))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a private mapping against its memory")
def test_a_file_may_be_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    size = 4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with path.open("wb+") as file:
        file.truncate(size)
        buffer = map_file(file)
        assert len(buffer) == size
        buffer[size - 1] = 7  # writable, and the file stays as it is
        assert buffer[size - 1] == 7
        buffer.close()
        file.seek(size - 1)
        assert file.read(1) == b"\0"
