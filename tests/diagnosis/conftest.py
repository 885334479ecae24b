from __future__ import annotations

import pytest
import torch

from tools.faults import Subject
from tools.faults.small import small_subject


@pytest.fixture(autouse=True)
def fbgemm():
    torch.backends.quantized.engine = "fbgemm"


@pytest.fixture(scope="session")
def small() -> Subject:
    return small_subject(0)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(5))
