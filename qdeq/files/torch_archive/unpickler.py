"""Read a pickle into descriptions: nothing is imported, called or built that the pickle names.

The interpreter knows the standard containers. A name (``GLOBAL``) stays a :class:`Global`, an object made by
``NEWOBJ`` stays an :class:`Instance`, and a call (``REDUCE``) stays a :class:`Call`, or is refused: functions of the
standard library, of torch and of numpy must be on the list of ``calls.py``, and so must everything whose name is not
written like a class. The format is that of :mod:`pickletools`, protocols 0 to 5.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from qdeq.errors import QdeqError
from qdeq.files.torch_archive.byte_reader import ByteReader
from qdeq.files.torch_archive.calls import PYTHON2, build, check_call
from qdeq.files.torch_archive.limits import MAX_NODES, MAX_OPCODES, MAX_STACK, REMEDY_BROKEN
from qdeq.files.torch_archive.pickled import Global, Instance, Persistent
from qdeq.files.untrusted import refuse, shown

__all__ = ["read_pickle"]


class _Opaque:
    """A dict key that is not plain data; compared by identity, so that a deep tuple is never hashed."""

    def __init__(self, value: object) -> None:
        self.value = value


def _key(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float | bytes | Global):
        return value
    if isinstance(value, tuple) and len(value) < 100 and all(isinstance(v, str | int | float) for v in value):
        return value
    return _Opaque(value)


class _Mark:
    pass


_MARK = _Mark()
_PUSH_ARGUMENT = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT"
)


class _Machine:
    """One pickle's stack and memo. Methods are named after their opcodes."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value is needed")
        return value

    def pop_to_mark(self) -> list[Any]:
        stack = self.stack
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                items = stack[at + 1 :]
                del stack[at:]
                return items
        raise ValueError("no mark on the stack")

    def global_name(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        return Global(PYTHON2.get(module, module), name)

    def put(self, arg: Any) -> None:
        self.memo[len(self.memo) if arg is None else int(arg)] = self.top()

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value is needed")
        return self.stack[-1]

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def reduce(self, _: Any) -> None:
        args, func = self.pop(), self.pop()
        self.call(func, args)

    def call(self, func: Any, args: Any) -> None:
        if not isinstance(args, tuple):
            raise ValueError("arguments that are no tuple")
        checked = check_call(self.where, func)
        if str(checked) == "collections.OrderedDict" and args and isinstance(args[0], list):  # protocols 0 and 1
            self.stack.append(self.dict_of_pairs(args[0]))
        else:
            self.stack.append(build(checked, args))

    def dict_of_pairs(self, pairs: list[Any]) -> dict[Any, Any]:
        self.copied += len(pairs)
        if self.copied > MAX_NODES:
            raise ValueError("too many dictionary items")
        return {_key(p[0]): p[1] for p in pairs if isinstance(p, list | tuple) and len(p) == 2}

    def newobj(self, args: Any) -> None:
        cls = self.pop()
        if not isinstance(cls, Global) or not isinstance(args, tuple):
            raise ValueError("an object without a named class")
        if cls == Global("collections", "OrderedDict"):
            self.stack.append({})
        else:
            self.stack.append(Instance(cls, args))

    def newobj_ex(self, _: Any) -> None:
        self.pop()
        self.newobj(self.pop())

    def obj(self, _: Any) -> None:
        cls, *args = self.pop_to_mark()
        self.call(cls, tuple(args))

    def inst(self, arg: str) -> None:
        module, name = arg.split(" ", 1)
        self.call(self.global_name(module, name), tuple(self.pop_to_mark()))

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Instance):
            target.state = state
        elif not isinstance(target, dict | tuple | list):  # an OrderedDict's __dict__ (_metadata) is not needed
            raise ValueError("state for something that has none")

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if len(items) % 2:
            raise ValueError("a key without a value")
        into = target if isinstance(target, dict) else target.items if isinstance(target, Instance) else None
        if into is None:
            raise ValueError("items for something that is no dict")
        for at in range(0, len(items), 2):
            into[_key(items[at])] = items[at + 1]

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if isinstance(target, Instance):
            target.elements.extend(items)
        elif isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, tuple):  # a set under construction
            raise ValueError("elements for something that is no list")

    def frozenset_(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def persistent(self, _: Any) -> None:
        pid = self.pop()
        if isinstance(pid, tuple) and len(pid) in (3, 4) and pid[0] == "reduce_package":  # a call, of torch.package
            self.call(*pid[-2:])
            return
        named = isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module" and isinstance(pid[1], Global)
        self.stack.append(pid[1] if named else Persistent(pid))  # a class, with its source code beside it

    def dict_(self, _: Any) -> None:
        items = self.pop_to_mark()
        self.stack.append({})
        self.set_items(items)

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.stack.append(self.global_name(module, name))

    def add_items(self, _: Any) -> None:
        items = self.pop_to_mark()
        target = self.top()
        if not isinstance(target, list):
            raise ValueError("elements for something that is no set")
        target.extend(items)


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    **{name: lambda m, a: m.stack.append(a) for name in _PUSH_ARGUMENT.split()},
    "NONE": lambda m, a: m.stack.append(None),
    "NEWTRUE": lambda m, a: m.stack.append(True),
    "NEWFALSE": lambda m, a: m.stack.append(False),
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "MARK": lambda m, a: m.stack.append(_MARK),
    "POP": lambda m, a: m.stack.__delitem__(-1),
    "POP_MARK": lambda m, a: (m.pop_to_mark(), None)[1],
    "DUP": lambda m, a: m.stack.append(m.top()),
    "EMPTY_LIST": lambda m, a: m.stack.append([]),
    "EMPTY_DICT": lambda m, a: m.stack.append({}),
    "EMPTY_SET": lambda m, a: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, a: m.stack.append(()),
    "ADDITEMS": _Machine.add_items,
    "FROZENSET": _Machine.frozenset_,
    "TUPLE": _Machine.frozenset_,
    "TUPLE1": lambda m, a: m.tuple_of(1),
    "TUPLE2": lambda m, a: m.tuple_of(2),
    "TUPLE3": lambda m, a: m.tuple_of(3),
    "LIST": lambda m, a: m.stack.append(m.pop_to_mark()),
    "DICT": _Machine.dict_,
    "APPEND": lambda m, a: m.append([m.pop()]),
    "APPENDS": lambda m, a: m.append(m.pop_to_mark()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda m, a: m.set_items(m.pop_to_mark()),
    "GLOBAL": lambda m, a: m.stack.append(m.global_name(*a.split(" ", 1))),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": lambda m, a: m.newobj(m.pop()),
    "NEWOBJ_EX": _Machine.newobj_ex,
    "OBJ": _Machine.obj,
    "INST": _Machine.inst,
    "BUILD": _Machine.build,
    "PERSID": lambda m, a: m.stack.append(Persistent(a)),
    "BINPERSID": _Machine.persistent,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": lambda m, a: m.stack.append(m.memo[int(a)]),
    "BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.stack.append(m.memo[a]),
    "STOP": lambda m, a: None,
}


# By opcode byte: what it does, and how its argument is read (None: it has none).
_TABLE: list[tuple[Callable[[_Machine, Any], None], Callable[[Any], Any] | None] | None] = [None] * 256
for _opcode in pickletools.opcodes:
    if _opcode.name in _HANDLERS:
        _TABLE[ord(_opcode.code)] = (_HANDLERS[_opcode.name], _opcode.arg.reader if _opcode.arg else None)
_STOP = ord(".")


def _run(machine: _Machine, reader: ByteReader) -> None:
    buffer, stop = reader.buffer, reader.stop
    for _ in range(MAX_OPCODES):
        if reader.position >= stop:
            raise ValueError("the pickle ends before its STOP")
        code = buffer[reader.position]
        reader.position += 1
        if code == _STOP:
            return
        entry = _TABLE[code]
        if entry is None:
            raise ValueError(f"no opcode that a checkpoint has: {code:#04x}")
        handler, read = entry
        handler(machine, None if read is None else read(reader))
        if len(machine.stack) > MAX_STACK:
            refuse(machine.where, f"at most {MAX_STACK} values on the stack", "more", "Save the state_dict() alone.")
    refuse(machine.where, f"at most {MAX_OPCODES} pickle opcodes", "more", "Save the state_dict() alone.")


def read_pickle(buffer: Any, where: str, start: int = 0, stop: int | None = None) -> tuple[Any, int]:
    """Read one pickle out of ``buffer[start:stop]``.

    Args:
        buffer: bytes, memoryview or mmap.
        where: file and record, for errors.
        start: where the pickle begins.
        stop: one past the last byte that may belong to it.

    Returns:
        The description of the pickled object, and the position after its ``STOP``.

    Raises:
        QdeqValueError: not a pickle, too large, or a call that is not on the list.

    """
    reader = ByteReader(buffer, start, len(buffer) if stop is None else stop)
    machine = _Machine(where)
    try:
        _run(machine, reader)
        result = machine.pop()
    except QdeqError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, AttributeError, UnicodeError) as error:
        refuse(where, "a well-formed pickle", shown(str(error)), REMEDY_BROKEN)
    return result, reader.tell()
