"""One way to compare: equality first, then timing, with the peers' rounds between ours in the same run.

A case names its candidates: ours, peers that compute the same, and limits, loops that only move the bytes. Each round
gives every candidate one turn, so that another load on the machine meets all alike. A turn is one call for results that
do not fit the last-level cache, and several in a row for those that do: a candidate then meets the caches as its own
calls leave them, not as its neighbour did. The JSON that pytest-benchmark writes then holds, under ``extra_info``, the
times of all candidates; ``benchmarks/report.py`` turns it into a table.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import qdeq

__all__ = ["LIMITS", "Case", "assert_same_bits", "calls_for", "limits_given", "measure"]

ROOT = Path(__file__).resolve().parents[1]


def _built_limits() -> Any:
    """The loops of benchmarks/csrc/limits.cpp, compiled where that has not been done yet."""
    from torch.utils import cpp_extension

    folder = ROOT / "build" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "benchmarks/csrc/limits.cpp", ROOT / "csrc/common/memory.cpp"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on the compiler
        cpp_extension.load(
            "qdeq_limits",
            [str(source) for source in sources],
            extra_cflags=["-std=c++20", "-O3", "-DTORCH_TARGET_VERSION=0x020d000000000000"],
            extra_include_paths=[str(ROOT / "csrc")],
            build_directory=str(folder),
            is_python_module=False,
        )
    return torch.ops.qdeq_limits


LIMITS = _built_limits()


@dataclass
class Case:
    """What is compared.

    Attributes:
        name: row of the table.
        ours: qdeq's call.
        peers: others that give the same values, by name; "torch" is the one that ratios are taken to.
        limits: loops that only move the same bytes, by name; "bare loop" or "fresh memset" is the one to reach.
        out_bytes: size of the result.
        goal: ratios wanted, such as {"torch": 15, "bare loop": 1.05}; for limits the value is an upper bound.
        calls: calls per turn; the times are of one call.
        before: runs before each turn, untimed, so that all find the machine's memory in the same state.
    """

    name: str
    ours: Callable[[], object]
    peers: dict[str, Callable[[], object]] = field(default_factory=dict)
    limits: dict[str, Callable[[], object]] = field(default_factory=dict)
    out_bytes: int = 0
    goal: dict[str, float] = field(default_factory=dict)
    calls: int = 1
    before: Callable[[], object] = lambda: None


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    """Compare through integer views, in slices that stay small beside the tensors."""
    assert got.shape == want.shape
    assert got.dtype == want.dtype
    view = torch.int32 if got.dtype == torch.float32 else torch.int16
    for a, b in zip(got.split(max(1, got.shape[0] // 16)), want.split(max(1, got.shape[0] // 16)), strict=True):
        assert torch.equal(a.contiguous().view(view), b.contiguous().view(view))


def calls_for(out_bytes: int) -> int:
    """Calls per turn, by the size of the result."""
    cache = int(str(qdeq.build_info()["last_level_cache_bytes"])) or 32 << 20
    return 1 if out_bytes > cache else max(5, min(300, (8 << 20) // out_bytes))


def limits_given(out: Tensor, source_bytes: int) -> dict[str, Callable[[], object]]:
    """Limits for a dense result made from ``source_bytes`` bytes; they write into ``out``'s own memory."""
    flat = torch.empty(0, dtype=out.dtype).set_(out.untyped_storage(), 0, (out.numel(),), (1,))
    source = torch.ones_like(flat)
    # Ones, not zeros: memory that nobody has written to is one shared page, which is read from the cache.
    ints = torch.ones(source_bytes, dtype=torch.uint8)
    if source_bytes == out.nbytes:
        return {"bare loop": lambda: LIMITS.copy(source, flat), "memset": lambda: LIMITS.memset(flat)}
    return {
        "bare loop": lambda: LIMITS.bare_loop(ints, flat),
        "memset": lambda: LIMITS.memset(flat),
        "copy": lambda: LIMITS.copy(source, flat),
    }


def _timed(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls - 1):
        call()
    result = call()
    elapsed = time.perf_counter() - start
    del result  # the allocator's work to free it is nobody's result
    return elapsed / calls


def measure(benchmark: Any, case: Case, *, rounds: int) -> None:
    """Time a case whose results have been found equal, and leave all times in ``benchmark.extra_info``."""
    others = {**case.peers, **case.limits}
    times: dict[str, list[float]] = {name: [] for name in ["qdeq", *others]}
    for call in others.values():
        call()  # warm up: lazy initialisation and first page faults

    def one_of_each() -> None:
        for name, call in others.items():
            case.before()
            times[name].append(_timed(call, case.calls))
        case.before()

    def ours() -> None:
        times["qdeq"].append(_timed(case.ours, case.calls))

    case.ours()
    benchmark.pedantic(ours, setup=one_of_each, rounds=rounds, iterations=1)
    benchmark.extra_info.update(
        case=case.name,
        times=times,
        peers=list(case.peers),
        limits=list(case.limits),
        out_bytes=case.out_bytes,
        goal=case.goal,
    )
