"""Who may import whom: the rooms and rows of docs/architecture.md, the folders of csrc/README.md."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.helpers.house import (
    FILES,
    MODULES,
    PACKAGE,
    ROOT,
    circles,
    imports,
    name_of,
    names,
    none_of,
    room_of,
    table,
    tree,
)

CSRC = ROOT / "csrc"
# The only list of rooms: its rows from the top down, several rooms in one row side by side.
ROWS = [names(row["rooms"]) for row in table(ROOT / "docs" / "architecture.md", "row")]
HEIGHT = {room: len(ROWS) - at for at, rooms in enumerate(ROWS) for room in rooms}


def test_the_document_names_every_room_once_and_no_other():
    rooms = [room for rooms in ROWS for room in rooms]
    assert len(rooms) == len(set(rooms))
    there = {room_of(name) for name in MODULES}
    none_of("rooms", [f"{room}: is in no row of docs/architecture.md" for room in there - set(rooms)])
    none_of("rooms", [f"{room}: is in docs/architecture.md and not in qdeq/" for room in set(rooms) - there])


def test_there_are_at_most_eleven_rows():
    assert 1 < len(ROWS) <= 11


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_an_import_never_points_up(file):
    here = room_of(name_of(file))
    up = [
        f"{name_of(file)} -> {target}: line {line} imports from a higher row"
        for target, line in imports(file)
        if HEIGHT[room_of(target)] > HEIGHT[here]
    ]
    none_of("imports", up)


def _nodes(depth: int | None):
    """Edges between files (None), rooms (1) or the folders in rooms (2); what one node holds is its own affair."""
    edges: dict[str, set[str]] = defaultdict(set)
    for file in FILES:
        name = name_of(file)
        for target, _ in imports(file):
            if depth is None:
                one, other = name or "__init__", target or "__init__"
            else:
                one, other = (_folder(module, depth) for module in (name, target))
            edges[one] |= {other}
            edges[other] |= set()
    return edges


def _folder(module: str, depth: int) -> str:
    """``diagnosis.say`` of ``diagnosis.say.text``; a file beside folders stands for itself."""
    return ".".join(module.split(".")[:depth]) or "__init__"


@pytest.mark.parametrize(("what", "depth"), [("rooms", 1), ("folders", 2), ("files", None)])
def test_there_are_no_circles(what, depth):
    none_of("circles", [f"{' -> '.join(circle)}: {what} import each other" for circle in circles(_nodes(depth))])


def test_only_tests_import_tests():
    """What they share with tools/, fuzz/, benchmarks/ and examples/ lies there; the package imports none of them."""
    outside = ("tools", "fuzz", "benchmarks", "examples")
    found = []
    for folder in (*outside, "qdeq"):
        forbidden = {"tests", *outside} if folder == "qdeq" else {"tests"}
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(tree(file)):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                found += [f"{file}: imports {name}" for name in modules if name.split(".")[0] in forbidden]
    assert not found


def test_the_command_line_is_seen_through_public_names():
    """``import qdeq`` and ``qdeq.open(...)`` in a command are imports of the room that holds ``open``."""
    for command, room in (("convert", "files"), ("diff", "files"), ("info", "weights")):
        assert room in {room_of(target) for target, _ in imports(PACKAGE / "cli" / f"{command}.py")}, command


def test_no_import_escapes(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        "import qdeq, qdeq._C\n"
        "from qdeq import open, words\n"
        "from qdeq.weights import native as n\n"
        "from qdeq.grids import drop_activations\n"
        "if TYPE_CHECKING:\n    import qdeq.report\n"
        "def f():\n    from qdeq.errors import expected\n    qdeq.explain(1)\n"
        "importlib.import_module('qdeq.demo.story')\n"
    )
    below = {1: {""}, 2: {"", "files", "words"}, 3: {"weights.native"}, 4: {"grids"}, 6: {"report"}}
    below |= {8: {"errors"}, 9: {"diagnosis.explain"}, 10: {"demo.story"}}
    assert set(imports(file)) == {(target, line) for line, targets in below.items() for target in targets}


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e", "a"}}) == [["b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "b"}}) == [["a", "b", "c"], ["b", "c"]]


def test_each_folder_of_csrc_includes_what_its_readme_allows():
    readme = CSRC / "README.md"
    if not readme.exists():
        none_of("csrc", ["README.md: csrc/ has no page that says which folder may include what"])
        return
    allowed = {names(row["folder"])[0]: row["may include"] for row in table(readme, "folder")}
    folders = set(allowed)
    for folder, cell in allowed.items():
        said = set(names(cell))
        allowed[folder] = {folder} | (folders - said if cell.startswith("all but") else said)
    found = []
    for file in sorted(path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".h", ".inl")):
        folder = file.relative_to(CSRC).parts[0] if file.parent != CSRC else "csrc"
        for line in file.read_text().splitlines():
            included = re.match(r'\s*#include "([^"]+)"', line)
            if not included:
                continue
            beside = file.parent / included[1]
            path = beside if beside.exists() else CSRC / included[1]
            target = path.resolve().relative_to(CSRC).parts[0] if path.exists() and path.parent != CSRC else "csrc"
            if target not in allowed.get(folder, ()):
                found.append(f"{file.relative_to(CSRC)}: includes {included[1]}, {folder} may not include {target}")
    none_of("csrc", found)
