"""What lies in the pickles of an archive, as the code sees it: modules, tensors, packed weights, plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qdeq.files.torch_archive.pickled import Call, Instance
from qdeq.files.torch_archive.script import Script
from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.untrusted import refuse, shown
from qdeq.sources.torchscript.code import OPEN, Code, ScriptClass
from qdeq.sources.torchscript.packing import packed_from_state
from qdeq.words import join

__all__ = ["Object", "Objects", "Stored"]

_PACKED_CLASSES = "__torch__.torch.classes."
_MAX_PATH = 1000  # characters of a dotted name
_TENSOR_CALL_ARGS = 5  # (storage, offset, size, stride, requires_grad, ...); quantized ones have qparams before it


@dataclass(eq=False)
class Object:
    """An object of a class in the archive: a module, a named tuple, or one that the code made.

    Attributes:
        cls: its class.
        path: dotted path of a module.
        attributes: those that were looked at or set so far.
        raw: the others, as the pickle describes them.
        frozen: it lies in the file: the forward may not change it.

    """

    cls: ScriptClass
    path: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    frozen: bool = False


@dataclass(eq=False)
class Stored:
    """A tensor of the archive.

    Attributes:
        name: its dotted name.
        tensor: where it lies.
        is_parameter: its module says so.
        requires_grad: as it was saved.
        used: the code asked for its value.

    """

    name: str
    tensor: StoredTensor
    is_parameter: bool = False
    requires_grad: bool = False
    used: bool = False

    def number(self, where: str) -> bool | int | float:
        """The value of a tensor that holds one number.

        Raises:
            QdeqValueError: it holds another number of values.

        """
        self.used = True
        value = self.tensor.read(where) if self.tensor.numel == 1 else None
        if not isinstance(value, Tensor) or value.is_complex():
            refuse(where, f"one number in {self.name}", shown(self.tensor.shape), OPEN)
        number: bool | int | float = value.reshape(()).item()
        return number


class Objects:
    """The objects of an archive; each is made when the code asks for it.

    Args:
        script: the archive.
        code: its classes.
        set_state: runs ``__setstate__`` of an object with a state.

    """

    def __init__(self, script: Script, code: Code, set_state: Callable[[Object, Any], None]) -> None:
        """See the class."""
        self._script, self._code, self._set_state = script, code, set_state
        self._made: dict[int, Any] = {}
        self._taken: set[int] = set()  # ids of the tensors of packed objects

    def root(self) -> Object:
        """The module that was saved."""
        found = self._value(self._script.top, "", constant=False)
        if not isinstance(found, Object):
            refuse(self._script.path, "a module in data.pkl", shown(self._script.top), OPEN)
        return found

    def constant(self, where: str, name: str) -> Any:
        """What the code calls ``CONSTANTS.c0`` and so on."""
        number = name.removeprefix("c")
        if not number.isdecimal() or len(number) > 9 or int(number) >= len(self._script.constants):
            refuse(where, f"one of {len(self._script.constants)} constants", shown(name), OPEN)
        return self._value(self._script.constants[int(number)], f"constants.{number}", constant=True)

    def attribute(self, item: Object, name: str) -> Any:
        """An attribute of an object; KeyError if there is none."""
        if name not in item.attributes:
            value = self._value(item.raw[name], join(item.path, name), constant=False)
            if isinstance(value, Stored) and name in item.cls.parameters:
                value.is_parameter = True
            item.attributes[name] = value
        return item.attributes[name]

    def unused(self) -> list[str]:
        """Dotted names of the tensors whose values the code did not ask for."""
        found: dict[int, str] = {}
        seen: set[int] = set()
        waiting = [(self._script.top, ""), *((c, f"constants.{at}") for at, c in enumerate(self._script.constants))]
        while waiting:
            raw, path = waiting.pop()
            if id(raw) in seen or len(path) > _MAX_PATH:
                continue
            seen.add(id(raw))
            if isinstance(raw, Call):
                made = self._made.get(id(raw))
                if id(raw) not in self._taken and not (isinstance(made, Stored) and made.used):
                    found[id(raw)] = path
            elif isinstance(raw, Instance):
                waiting.append((raw.state, path))
            elif isinstance(raw, dict):
                waiting += [(item, join(path, str(key))) for key, item in raw.items()]
            elif isinstance(raw, list | tuple):
                waiting += [(item, join(path, str(at))) for at, item in enumerate(raw)]
        return sorted(found.values())

    def _value(self, raw: Any, path: str, *, constant: bool) -> Any:
        if raw is None or isinstance(raw, str | bool | int | float):
            return raw
        if id(raw) not in self._made:
            self._made[id(raw)] = self._make(raw, path, constant)
        return self._made[id(raw)]

    def _make(self, raw: Any, path: str, constant: bool) -> Any:
        where = f"{self._script.path}: {shown(path)[1:-1] or 'data.pkl'}"
        if len(path) > _MAX_PATH:
            refuse(where, f"names of at most {_MAX_PATH} characters", "a longer one", OPEN)
        if isinstance(raw, Call):
            return self._tensor(where, raw, path, constant)
        if isinstance(raw, list | tuple):
            items = [self._value(item, join(path, str(at)), constant=constant) for at, item in enumerate(raw)]
            return items if isinstance(raw, list) else tuple(items)
        if isinstance(raw, dict):
            return {key: self._value(item, join(path, str(key)), constant=constant) for key, item in raw.items()}
        if not isinstance(raw, Instance):
            refuse(where, "a value that code of TorchScript knows", shown(raw), OPEN)
        return self._instance(where, raw, path, constant)

    def _tensor(self, where: str, raw: Call, path: str, constant: bool) -> Stored:
        tensor = self._script.tensor(where, raw, constant=constant)
        if tensor is None:
            refuse(where, "a tensor", shown(str(raw.cls)), OPEN)
        at = _TENSOR_CALL_ARGS - 1 + (tensor.qscheme is not None)
        return Stored(path, tensor, requires_grad=raw.args[at : at + 1] == (True,))

    def _instance(self, where: str, raw: Instance, path: str, constant: bool) -> Any:
        name = str(raw.cls)
        if name.startswith(_PACKED_CLASSES):
            packed = packed_from_state(where, name, raw.state, self._need(where, constant))
            packed.held = path
            return packed
        cls = self._code.find(name)
        if not isinstance(cls, ScriptClass):
            refuse(where, "an object of a class that the code has", shown(name), OPEN)
        item = Object(cls, path)
        self._made[id(raw)] = item  # before its state, which may refer to it
        if "__setstate__" in cls.methods:
            self._set_state(item, self._value(raw.state, join(path, "state"), constant=constant))
        elif isinstance(raw.state, dict):
            item.raw = {key: value for key, value in raw.state.items() if isinstance(key, str)}
        else:
            refuse(where, "a module with attributes", shown(raw.state), OPEN)
        item.frozen = True
        return item

    def _need(self, where: str, constant: bool) -> Callable[[object], StoredTensor]:
        def need(value: object) -> StoredTensor:
            tensor = self._script.tensor(where, value, constant=constant)
            if tensor is None:
                refuse(where, "a tensor", shown(value), OPEN)
            self._taken.add(id(value))
            return tensor

        return need
