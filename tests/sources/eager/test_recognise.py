"""Walking over the modules of a model."""

from __future__ import annotations

import pytest
from torch import nn

from qdeq.tree.walk import every_module


@pytest.mark.parametrize("remove_duplicate", [True, False])
def test_every_module_is_named_modules(remove_duplicate):
    shared = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    model = nn.Sequential(shared, nn.ModuleList([nn.Conv2d(1, 1, 1), shared]), nn.ModuleDict({"a": shared[1]}))
    model.register_module("empty", None)
    assert every_module(model, remove_duplicate=remove_duplicate) == list(
        model.named_modules(remove_duplicate=remove_duplicate)
    )
