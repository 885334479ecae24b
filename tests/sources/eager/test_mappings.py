"""The list of what is supported is complete, and the pages that describe it are true."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.sources.eager import mappings
from qdeq.sources.eager.mappings import NOT_REBUILT, RULES, why_not_rebuilt
from tests.helpers.models import assert_same_bits

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_supported", DOCS / "make_supported.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_class_that_torch_ships_is_named(script):
    unnamed = [
        script.dotted(cls)
        for cls in script.torch_classes()
        if cls not in RULES and why_not_rebuilt(script.dotted(cls)) is None
    ]
    assert not unnamed, "torch has new quantized modules: build them or say why not, in qdeq/sources/eager/mappings.py"


def test_a_new_class_in_torch_would_be_noticed(script, monkeypatch):
    new = type("Conv4d", (nn.Module,), {"__module__": "torch.ao.nn.quantized.modules.conv"})
    monkeypatch.setattr(script, "torch_classes", lambda: [nnq.Linear, new])
    with pytest.raises(SystemExit, match=r"torch\.ao\.nn\.quantized\.Conv4d is in no list"):
        script.page()


def test_no_list_names_what_torch_does_not_have(script):
    names = {script.dotted(cls) for cls in script.torch_classes()}
    namespaces = {name.rpartition(".")[0] + ".*" for name in names}
    assert set(NOT_REBUILT) <= names | namespaces


OLD_NAMESPACES = [
    "torch.nn.quantized",
    "torch.nn.quantized.dynamic",
    "torch.nn.quantized._reference",
    "torch.nn.quantizable",
    "torch.nn.intrinsic.quantized",
    "torch.nn.intrinsic.quantized.dynamic",
]


@pytest.mark.parametrize("namespace", OLD_NAMESPACES)
def test_old_names_are_the_classes_of_the_list(namespace):
    """Code and pickles from before torch.ao name these; torch makes them the same objects."""
    old = importlib.import_module(f"{namespace}.modules")
    classes = [cls for cls in vars(old).values() if isinstance(cls, type) and issubclass(cls, nn.Module)]
    known = [cls for cls in classes if cls in RULES]
    assert known
    for cls in set(classes) - set(known):
        assert cls.__module__.startswith("torch.nn.") or why_not_rebuilt(class_name_of(cls)), cls


def class_name_of(cls: type) -> str:
    return f"{cls.__module__.partition('.modules')[0]}.{cls.__qualname__}"


def test_the_page_is_up_to_date(script):
    assert (DOCS / "supported.md").read_text() == script.page(), "run python docs/make_supported.py"


def test_what_a_class_becomes_exists():
    holders = {name: value for family in mappings._FAMILIES for name, value in vars(family).items()}
    for rule in RULES.values():
        for name in re.findall(r"[\w.]+", rule.becomes.replace(" and ", " ").replace(" or ", " ")):
            short = name.removeprefix("nn.").removeprefix("torch.ao.nn.quantized.")
            assert hasattr(nn, short) or hasattr(nnq, short) or short in holders, name


def test_the_example_of_extending_runs():
    code = re.search(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL).group(1)
    before = dict(mappings._REGISTERED)
    scope: dict[str, object] = {"__name__": "example"}
    try:
        exec(compile(code, "docs/extending.md", "exec"), scope)
    finally:
        mappings._REGISTERED.clear()
        mappings._REGISTERED.update(before)
    model, rebuilt = scope["model"], scope["float_model"]
    assert_same_bits(rebuilt[0].weight, scope["weight"].dequantize())
    assert scope["report"].notes["0"] == ["was an Int8Linear"]
    x = torch.randn(2, 4)
    torch.testing.assert_close(rebuilt(x), model(x))
