import importlib
from types import SimpleNamespace

import pytest

from qdeq.demo import vision


def test_models_and_datasets_are_there_and_the_module_stays_the_same():
    torchvision = vision.import_torchvision()
    assert callable(torchvision.models.vgg11)
    assert callable(torchvision.datasets.CIFAR10)
    assert vision.import_torchvision() is torchvision


def test_nothing_is_declared_where_the_plain_import_works(monkeypatch):
    monkeypatch.setattr(vision, "_stubs", [])
    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(name=name))
    assert vision.import_torchvision().name == "torchvision"
    assert vision._stubs == []


def test_other_failures_pass_through(monkeypatch):
    def fail(name: str) -> None:
        raise RuntimeError("something else is broken")

    monkeypatch.setattr(vision, "_stubs", [])
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="something else is broken"):
        vision.import_torchvision()
    assert vision._stubs == []
