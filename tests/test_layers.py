"""Imports only point down, and each native module is named in one file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import qdeq

ROOT = Path(qdeq.__file__).parent

# From the bottom up. A file may import from lower layers and from its own.
LAYERS = [
    ["errors", "report", "words"],
    ["weights", "tree"],
    ["grids"],
    ["layers"],
    ["state_dicts"],
    ["files"],
    ["sources"],
    ["rebuild"],
    ["diagnosis"],
    ["__init__"],
    ["cli", "demo", "__main__"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(ROOT.rglob("*.py"))


def layer_of(module: str) -> int:
    """The rank of a dotted name below qdeq, such as ``modules.linear``."""
    return RANK[module.split(".")[0]]


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(file: Path):
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: imports are absolute"
            # ``from qdeq import packed`` may name a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "qdeq" else [node.module]
        for name in names:
            if name.startswith("qdeq."):
                yield name.removeprefix("qdeq."), node.lineno


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_an_import_never_points_up(file):
    here = layer_of(module_of(file))
    for target, line in imports(file):
        first = target.split(".")[0]
        if first in RANK:
            assert RANK[first] <= here, f"{file}:{line} imports qdeq.{target} from a higher layer"


@pytest.mark.parametrize(
    ("pattern", "owner"),
    [(r"\bqdeq\._C\b|import _C\b|torch\.ops\.qdeq\b", "native.py"), (r"import _torch\b|qdeq\._torch\b", "native.py")],
)
def test_a_native_module_is_named_in_one_file(pattern, owner):
    found = {
        file.name
        for file in FILES
        if any(re.search(pattern, line.split("#")[0]) for line in file.read_text().splitlines())
    }
    assert found <= {owner}
