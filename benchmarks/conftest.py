"""``--quick``: small sizes and few rounds, to see that every case runs and its results are equal."""

from __future__ import annotations

import os
import platform

import pytest
import torch

import qdeq


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="small sizes and few rounds; the figures mean little")


@pytest.fixture
def quick(request) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def rounds(quick) -> int:
    return 3 if quick else 9


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def pytest_benchmark_update_machine_info(config, machine_info):
    info = qdeq.build_info()
    machine_info["qdeq"] = {key: info[key] for key in ("torch", "compiler", "kernels", "last_level_cache_bytes")}
    machine_info["threads"] = torch.get_num_threads()
    machine_info["quick"] = config.getoption("--quick")
    machine_info["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    machine_info["platform"] = platform.platform()
