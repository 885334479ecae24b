from __future__ import annotations

import pytest
import torch

from tests.helpers.mutations import Subject
from tests.helpers.small import small_subject


@pytest.fixture(autouse=True)
def fbgemm():
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    yield
    torch.backends.quantized.engine = before


@pytest.fixture(scope="session")
def small() -> Subject:
    return small_subject(0)


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(96, 3, 16, 16, generator=torch.Generator().manual_seed(5))
