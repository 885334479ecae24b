"""Every test begins with the torch of a fresh process, and a missing tool is a failure where it has to be there.

``QDEQ_REQUIRE=1`` makes every skipped test a failure: for a machine that has all that the tests can use. Words instead
(``QDEQ_REQUIRE="g++ onnx"``) mean the skips whose reason holds one of these words.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

import pytest
import torch

import qdeq

# A skip for this reason says what the machine is, not what was forgotten to be installed.
NOT_A_TOOL = "GB of free memory"


@dataclass(frozen=True)
class ProcessState:
    """What torch and qdeq keep for the whole process, and a test may change."""

    engine: str = field(default_factory=lambda: torch.backends.quantized.engine)
    threads: int = field(default_factory=torch.get_num_threads)
    dtype: torch.dtype = field(default_factory=torch.get_default_dtype)
    random: torch.Tensor = field(default_factory=torch.get_rng_state)
    kernel: str | None = field(default_factory=lambda: os.environ.get("QDEQ_KERNEL") or None)

    def restore(self) -> None:
        torch.backends.quantized.engine = self.engine
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)
        torch.set_rng_state(self.random)
        qdeq.use_kernel(self.kernel)


FRESH = ProcessState()


@pytest.fixture(autouse=True)
def fresh_process_state():
    """Before the test, too: fixtures of a module or session, which run earlier, leave nothing behind either."""
    FRESH.restore()
    yield
    FRESH.restore()


def must_run(reason: str) -> bool:
    """Whether ``QDEQ_REQUIRE`` forbids to skip a test for this reason."""
    required = os.environ.get("QDEQ_REQUIRE", "").split()
    words = re.split(r"[\s()\[\],:']+", reason)  # "clang++" is not "g++"
    return NOT_A_TOOL not in reason and (required == ["1"] or any(word in words for word in required))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        if must_run(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid}: QDEQ_REQUIRE={os.environ['QDEQ_REQUIRE']!r} forbids this. {reason}"
    return report
