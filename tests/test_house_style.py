"""Sizes of files and functions, and what code may name where."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.house import (
    FILES,
    ROOT,
    body_lines,
    cpp_functions,
    name_of,
    none_of,
    room_of,
    tree,
    without_docstrings,
)

MOST_LINES, MOST_BODY_LINES = 300, 40
CPP = sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".cpp", ".h", ".inl"))
PYTHON = sorted(
    path for folder in ("_build", "benchmarks", "docs", "examples", "fuzz", "qdeq", "tests", "tools")
    for path in (ROOT / folder).rglob("*.py")
)  # fmt: skip
# Rooms that know a source form, or draw and follow a live model, and so may name torch's classes of both kinds.
KNOW_FORMS = {"sources", "tree", "diagnosis", "demo"}
FORM_WORDS = re.compile(r"\btorch\.ao\b|GraphModule|ScriptModule")
NATIVE = re.compile(r"\bqdeq\._[a-zA-Z]|from qdeq import .*\b_[a-zA-Z]|torch\.ops\.qdeq\b|['\"]qdeq::")
# Files that spell torch's classes without knowing any: in messages, and in the list of what a pickle may call.
SPELLING = {"words", "files.torch_archive.calls"}
# What torch.fx calls a function by: no class.
FUNCTION = re.compile(r"\b(target|func|function)$")
NAMES = ("__name__", "__qualname__")
HANDED_TO = ("match", "search", "fullmatch", "get")
EXAMINING = {"startswith", "endswith", "find", "index", "count", "partition", "rpartition", "split", "removeprefix",
             "removesuffix"}  # fmt: skip


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_are_short():
    none_of("file lines", [
        f"{short(path)}: {lines} lines"
        for path in [*PYTHON, *CPP, *(ROOT / "tests").rglob("*.cpp"), ROOT / "setup.py"]
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    ])  # fmt: skip


def test_functions_are_short():
    python = [
        (f"{short(file)}:{node.name}", body_lines(node))
        for file in FILES
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    cpp = [(f"{short(file)}:{name}", lines) for file in CPP for name, lines in cpp_functions(file.read_text())]
    assert len(python) > 300
    assert len(cpp) > 50
    found = [f"{name}: {lines} lines" for name, lines in python + cpp if lines > MOST_BODY_LINES]
    none_of("function lines", found)


def _knows_forms(file: Path) -> bool:
    return room_of(name_of(file)) in KNOW_FORMS or name_of(file) in SPELLING


@pytest.mark.parametrize("file", [file for file in FILES if not _knows_forms(file)], ids=name_of)
def test_no_form_is_named_where_none_is_known(file):
    """In code, ``getattr(torch, "ao")`` included; a docstring may."""
    found = []
    for node in ast.walk(without_docstrings(file)):
        text = ""
        if isinstance(node, ast.Attribute | ast.Name):
            text = ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "torch.ao" if node.value in ("ao", "_ao") else node.value
        elif isinstance(node, ast.Import):
            text = " ".join(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            text = " ".join(f"{node.module}.{alias.name}" for alias in node.names)
        if named := FORM_WORDS.search(text):
            found.append(f"{short(file)}: line {node.lineno} names {named[0]}")
    none_of("forms", found)


def test_native_modules_are_named_in_one_file():
    found = [
        f"{short(file)}: names {named[0]}"
        for file in FILES
        if name_of(file) != "weights.native"
        for named in NATIVE.finditer(ast.unparse(without_docstrings(file)))
    ]
    none_of("native", found)


class _ClassNames:
    """Which expressions of a file are the name of a class: ``__name__``, ``class_name(x)``, and what holds those."""

    def __init__(self, module: ast.Module) -> None:
        self.module, self.variables = module, set()
        self.functions = {"class_name"}
        for _ in range(3):  # a name of a name of a name
            for node in ast.walk(module):
                if isinstance(node, ast.Assign) and self.holds(node.value):
                    self.variables |= {t.id for t in node.targets if isinstance(t, ast.Name)}
                elif isinstance(node, ast.NamedExpr) and self.holds(node.value):
                    self.variables.add(node.target.id)
                elif isinstance(node, ast.FunctionDef) and any(
                    isinstance(part, ast.Return) and part.value is not None and self.holds(part.value)
                    for part in ast.walk(node)
                ):
                    self.functions.add(node.name)

    def holds(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Attribute):
            return node.attr in NAMES and not FUNCTION.search(ast.unparse(node.value))
        if isinstance(node, ast.Name):
            return node.id in self.variables
        if isinstance(node, ast.Subscript):
            return self.holds(node.value)
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called == "getattr" and isinstance(node.args[1], ast.Constant):
                return node.args[1].value in NAMES and not FUNCTION.search(ast.unparse(node.args[0]))
            of_a_name = isinstance(node.func, ast.Attribute) and self.holds(node.func.value)
            return called in self.functions or of_a_name
        return False

    def decisions(self) -> Iterator[ast.expr]:
        for node in ast.walk(self.module):
            if isinstance(node, ast.Compare) and any(map(self.holds, [node.left, *node.comparators])):
                yield node
            elif isinstance(node, ast.Subscript) and self.holds(node.slice):
                yield node  # a table by class name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                examined = node.func.attr in EXAMINING and self.holds(node.func.value)
                handed = ast.unparse(node.func.value) == "re" or node.func.attr in HANDED_TO
                if examined or (handed and any(map(self.holds, node.args))):
                    yield node


def test_nothing_is_decided_on_a_part_of_a_class_name():
    found = [
        f"{short(file)}: line {node.lineno} decides on a class's name: {ast.unparse(node)}"
        for file in FILES
        if name_of(file) not in SPELLING
        for node in _ClassNames(without_docstrings(file)).decisions()
    ]
    none_of("class names", found)


@pytest.mark.parametrize(
    ("code", "decides"),
    [
        ('"ReLU" in type(m).__name__', True),
        ('type(m).__qualname__.endswith("Cell")', True),
        ("name = class_name(m)\nif name.lower().startswith('q'): pass", True),
        ("def kind(m): return type(m).__name__\nif kind(m) == 'Linear': pass", True),
        ('re.search("Conv", class_name(m))', True),
        ("TABLE[type(m).__name__]", True),
        ('getattr(cls, "__name__", "") in NAMES', True),
        ('getattr(node.target, "__name__", "") in NAMES', False),
        ('f"{class_name(m)} at {path}"', False),
        ("type(m) is nn.ReLU", False),
        ('if __name__ == "__main__": pass', False),
    ],
)
def test_what_counts_as_a_decision(code, decides):
    assert any(_ClassNames(ast.parse(code)).decisions()) is decides
