"""Random numbers whose seed a failing test prints."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture
def generator(request):
    seed = (
        hash(request.node.nodeid) % 2**31
        if os.environ.get("QDEQ_TEST_SEED") is None
        else int(os.environ["QDEQ_TEST_SEED"])
    )
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)
