"""The house as its documents draw it and as its files are: what the tests of its shape read."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "qdeq"
FILES = sorted(PACKAGE.rglob("*.py"))


def none_of(check: str, found: Iterable[str]) -> None:
    """Fail with every line of ``found``, each of which says what breaks a rule of the house."""
    lines = sorted(set(found))
    assert not lines, f"{check}:\n" + "\n".join(lines)


def table(page: Path, head: str) -> list[dict[str, str]]:
    """The Markdown table whose first column is ``head``: per row the text of each column."""
    lines = page.read_text().splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith(f"| {head} |")), None)
    assert start is not None, f"{page}: no table begins with | {head} |"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:] if line.startswith("|")]
    columns = rows[0]
    end = next((at for at, line in enumerate(lines[start:]) if not line.startswith("|")), len(rows))
    return [dict(zip(columns, row, strict=True)) for row in rows[2:end]]


def names(cell: str) -> list[str]:
    """What stands in backticks in a cell, without the slash behind a folder."""
    return re.findall(r"`([\w./]+?)/?`", cell)


NATIVE = re.compile(r"_[a-zA-Z]")  # _C and the like are no rooms: who may name them is another test's


def name_of(file: Path) -> str:
    """Dotted name below qdeq; "" for qdeq itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in FILES}


@functools.cache
def tree(file: Path) -> ast.Module:
    """Parse a Python file, once."""
    return ast.parse(file.read_text())


def room_of(module: str) -> str:
    """The room of a dotted name below qdeq."""
    return module.split(".")[0] or "__init__"


@functools.cache
def public_names() -> dict[str, str]:
    """Name in ``qdeq`` -> dotted name of the module below qdeq that holds it, eager and lazy ones alike."""
    found = {}
    for node in ast.walk(tree(PACKAGE / "__init__.py")):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qdeq."):
            found |= {alias.asname or alias.name: node.module.removeprefix("qdeq.") for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LAZY":
            lazy = ast.literal_eval(node.value)
            found |= {name: module.removeprefix("qdeq.") for name, module in lazy.items()}
    return found


def imports(file: Path) -> Iterator[tuple[str, int]]:
    """(module below qdeq, line) of each import, wherever it stands, also through the public names of qdeq."""
    for node in ast.walk(tree(file)):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [_below(alias.name) for alias in node.names if alias.name.split(".")[0] == "qdeq"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            if node.module == "qdeq":
                found = [alias.name for alias in node.names if not NATIVE.match(alias.name)]
                targets = [name if name in MODULES else "" for name in found]
                targets += [public_names()[name] for name in found if name in public_names()]
            elif (node.module or "").startswith("qdeq."):
                # ``from qdeq.weights import packed`` names a module, ``from qdeq.grids import Grid`` a class.
                full = [f"{_below(node.module)}.{alias.name}" for alias in node.names]
                targets = [name if name in MODULES else _below(node.module) for name in full]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qdeq" and node.attr in public_names():
            targets = [public_names()[node.attr]]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("qdeq."):
            targets = [name for name in [_below(node.value)] if name and name in MODULES]  # importlib and the like
        yield from ((target, node.lineno) for target in targets if not NATIVE.match(target))


def _below(name: str) -> str:
    return name.removeprefix("qdeq").removeprefix(".")


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """A shortest way back to itself of each node that has one, each circle once, from its first node on."""
    found = set()
    for start in edges:
        ways = [[start]]
        seen = {start}
        for way in ways:  # breadth first: it grows while it is read
            for following in sorted(edges[way[-1]]):
                if following == start and len(way) > 1:
                    first = way.index(min(way))
                    found.add((*way[first:], *way[:first]))
                    ways.clear()
                    break
                if following not in seen:
                    seen.add(following)
                    ways.append([*way, following])
    return [list(circle) for circle in sorted(found)]


def without_docstrings(file: Path) -> ast.Module:
    """The code alone: a fresh tree whose docstrings are gone."""
    module = ast.parse(file.read_text())
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _behind_docstring(node) or [ast.Pass()]
    return module


def _behind_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    return node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its first statement behind the docstring to its end."""
    body = _behind_docstring(node)
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def cpp_functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines between the braces) of each function of a C++ file; preprocessor lines are no code."""
    text = re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: "\n" * m[0].count("\n"), text, flags=re.M)
    text = re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])'", "", text)
    line, head, open_blocks = 1, "", []
    for char in text:
        line += char == "\n"
        if char == "{":
            inside = any(kind == "function" for kind, _, _ in open_blocks)
            is_function = ")" in head and not head.rstrip().endswith("=") and not inside
            name = re.search(r"([\w~]+)\s*\(", head)
            open_blocks.append(("function" if is_function else "block", name[1] if name else "", line))
        elif char == "}":
            kind, name, start = open_blocks.pop()
            if kind == "function":
                yield name, line - start - 1
        head = "" if char in "{};" else head + char
