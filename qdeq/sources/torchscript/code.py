"""The code of a TorchScript archive, which has Python's syntax: parsed within limits, looked up by name.

What the serializer writes (``torch/csrc/jit/serialization/python_print.cpp``): a file for each Python module, with
classes and functions; a class lists its attributes with their types, which of them are parameters and buffers, and the
values of those that are ``Final``.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from qdeq.files.torch_archive.script import Script
from qdeq.files.untrusted import refuse, shown

__all__ = ["OPEN", "Code", "Function", "ScriptClass"]

OPEN = "qdeq.open reads the weights of this file all the same."

_MAX_FILE_NAME = 300
# torch writes some ten brackets inside each other, and some hundred dots and brackets where calls stand in calls.
_MAX_NESTING, _MAX_CHAIN = 100, 1000
_STRING = r'"(?:[^"\\\n]|\\.)*"?|' + r"'(?:[^'\\\n]|\\.)*'?"
_MARKS = re.compile(_STRING + r"|[()\[\]{}.,\n+\-*/%@&|^~<>=!]")


@dataclass(frozen=True, eq=False)
class Function:
    """A function or method.

    Attributes:
        node: its syntax tree.
        file: the record that it stands in.

    """

    node: ast.FunctionDef
    file: str


@dataclass(eq=False)
class ScriptClass:
    """A class.

    Attributes:
        name: as the code spells it, such as ``__torch__.torch.nn.modules.linear.Linear``.
        base: ``Module``, ``NamedTuple``, ``Interface``, or nothing for a class that is no module.
        methods: by name.
        parameters: attributes that are parameters.
        buffers: attributes that are buffers.
        fields: attributes in the order in which they stand -> their types, as text.
        constants: attributes whose values stand in the code.

    """

    name: str
    base: str
    methods: dict[str, Function] = field(default_factory=dict)
    parameters: frozenset[str] = frozenset()
    buffers: frozenset[str] = frozenset()
    fields: dict[str, str] = field(default_factory=dict)
    constants: dict[str, ast.expr] = field(default_factory=dict)


class Code:
    """All code of an archive; a file is parsed when something in it is asked for."""

    def __init__(self, script: Script) -> None:
        """See the class."""
        self._script = script
        self._modules: dict[str, dict[str, ScriptClass | Function]] = {}

    def find(self, name: str) -> ScriptClass | Function | None:
        """The class or function of a dotted name that begins with ``__torch__``; None if there is none.

        Raises:
            QdeqValueError: its file is no code that torch writes, or too large.

        """
        module, _, own = name.rpartition(".")
        if module not in self._modules:
            self._modules[module] = self._parse(module)
        return self._modules[module].get(own)

    def _parse(self, module: str) -> dict[str, ScriptClass | Function]:
        text = self._script.source(module)
        if text is None:
            return {}
        # The archive's directory has no name with control characters in it.
        file = f"code/{module.replace('.', '/')}.py"[-_MAX_FILE_NAME:]
        where = f"{self._script.path}: {file}"
        _check_nesting(where, text)
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else str(error)
            refuse(where, "code that torch.jit.save writes", shown(reason), OPEN)
        found: dict[str, ScriptClass | Function] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = Function(node, file)
            elif isinstance(node, ast.ClassDef):
                found[node.name] = _read_class(f"{module}.{node.name}", node, file)
        return found


def _check_nesting(where: str, text: str) -> None:
    """Python's parser calls itself once a level, and takes long for what goes on without a comma."""
    depth = chain = 0
    for match in _MARKS.finditer(text):
        mark = match[0]
        chain = 0 if mark in ",\n" else chain + 1
        if mark in "([{":
            depth += 1
        elif mark in ")]}":
            depth -= 1
        if depth > _MAX_NESTING or chain > _MAX_CHAIN:
            what = f"code of at most {_MAX_NESTING} brackets inside each other, {_MAX_CHAIN} marks between commas"
            refuse(where, what, "more", OPEN)


def _read_class(name: str, node: ast.ClassDef, file: str) -> ScriptClass:
    base = node.bases[0] if node.bases else None
    found = ScriptClass(name, base.id if isinstance(base, ast.Name) else "")
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            found.methods[item.name] = Function(item, file)
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.fields[item.target.id] = ast.unparse(item.annotation)
            if item.value is not None:
                found.constants[item.target.id] = item.value
        elif isinstance(item, ast.Assign):
            _read_assignment(found, item)
    return found


def _read_assignment(found: ScriptClass, item: ast.Assign) -> None:
    """``__parameters__ = ["weight", ]``, or ``__annotations__["0"] = type`` for a name that is no identifier."""
    target = item.targets[0]
    if isinstance(target, ast.Name) and target.id in ("__parameters__", "__buffers__"):
        elements = item.value.elts if isinstance(item.value, ast.List) else []
        names = frozenset(e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str))
        if target.id == "__parameters__":
            found.parameters = names
        else:
            found.buffers = names
    elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        found.fields[str(target.slice.value)] = ast.unparse(item.value)
