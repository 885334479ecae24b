"""Records which child modules a forward runs, and on whose output: a fraction of the cost of torch.fx.

The forward runs on values that hold nothing. A value only notes who uses it: a child module, or anything else. No code
is generated and no operation is recorded in detail, because the search for slots asks one question alone: does every
use of this layer's output go through that Identity? Whatever would make the answer depend on data, or cannot be
watched, is refused; torch.fx may then try.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from qdeq.tree.copying import ATOMS

__all__ = ["CallTrace", "Node", "UnrecordedError", "record_calls", "recording"]

_CONSTANTS = ATOMS | {torch.layout, torch.memory_format, torch.qscheme}
_OPERATORS = (
    *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift"),
    *("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert", "getitem"),
)
_REFLECTED = ("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
# Python asks for a number, a length, an order or a copy: none can be given without data, or without losing sight of it.
_REFUSED = (
    *("bool", "int", "float", "complex", "index", "len", "iter", "contains", "round", "trunc", "floor", "ceil"),
    *("setitem", "delitem", "reduce_ex", "array"),
)


class UnrecordedError(Exception):
    """The forward did something that cannot be followed."""


class Node:
    """One operation of a forward, with the names of ``torch.fx.Node``.

    Attributes:
        op: ``"call_module"`` for a child module, anything else otherwise.
        target: dotted name of the child module.
        users: the operations that take its result.

    """

    __slots__ = ("op", "target", "users")

    def __init__(self, op: str, target: str = "") -> None:
        self.op = op
        self.target = target
        self.users: dict[Node, None] = {}


class CallTrace:
    """The operations of one forward, in order, with the name of ``torch.fx.Graph``."""

    def __init__(self, owner: nn.Module) -> None:
        self.nodes: list[Node] = []
        self.failed = False
        self._owner: nn.Module | None = owner
        self._names = {id(child): name for name, child in owner._modules.items() if child is not None}

    def name_of(self, module: nn.Module) -> str:
        """The dotted name of a module below the owner, the first if it has several."""
        name = self._names.get(id(module))
        if name is None and self._owner is not None:
            self._names = {id(child): name for name, child in self._owner.named_modules()}
            self._owner = None
            name = self._names.get(id(module))
        return name or self.refuse("a module that is none of its children")

    def use(self, op: str, target: str, *values: Any) -> _Value:
        """Record an operation on ``values``, which may be nested, and return its result."""
        node = Node(op, target)
        for value in values:
            self._take(value, node)
        self.nodes.append(node)
        return _Value(node)

    def _take(self, value: Any, node: Node) -> None:
        kind = type(value)
        if kind is _Value:
            value._node.users[node] = None
        elif kind is tuple or kind is list or kind is torch.Size:
            for item in value:
                self._take(item, node)
        elif kind is dict:
            self._take([*value, *value.values()], node)
        elif kind is slice:
            self._take((value.start, value.stop, value.step), node)
        elif kind not in _CONSTANTS and not isinstance(value, Tensor):
            self.refuse(f"a {kind.__name__} among its values")

    def refuse(self, what: str) -> NoReturn:
        """Give up, also where the forward catches every exception."""
        self.failed = True
        raise UnrecordedError(what)


class _State(threading.local):
    trace: CallTrace | None = None


_STATE = _State()
_PATCHED = threading.RLock()


def _active() -> CallTrace:
    trace = _STATE.trace
    if trace is None:
        raise UnrecordedError("a value is used after its forward ended")
    return trace


class _Value:
    """What a traced forward passes around. It notes its users, and knows nothing of shapes or data."""

    __slots__ = ("_node",)
    __hash__ = object.__hash__

    def __init__(self, node: Node) -> None:
        self._node = node

    def __getattr__(self, name: str) -> _Value:
        if name.startswith("__"):
            raise AttributeError(name)
        return _active().use("attribute", "", self)

    def __call__(self, *args: Any, **kwargs: Any) -> _Value:
        return _active().use("call", "", self, args, kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> _Value:
        del func, types
        return _active().use("call", "", args, kwargs or {})


def _operation(self: _Value, *others: Any) -> _Value:
    return _active().use("call", "", self, others)


def _refusal(self: _Value, *others: Any) -> NoReturn:
    del self, others
    _active().refuse("control flow or a conversion that depends on data")


for _name in (*_OPERATORS, *("r" + _name for _name in _REFLECTED)):
    setattr(_Value, f"__{_name}__", _operation)
for _name in _REFUSED:
    setattr(_Value, f"__{_name}__", _refusal)


@contextmanager
def recording() -> Iterator[None]:
    """Let :func:`record_calls` see the calls of modules; other threads go on as ever."""
    with _PATCHED:
        call: Callable[..., Any] = nn.Module.__call__
        attribute: Callable[..., Any] = nn.Module.__getattr__

        def recorded_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            trace = _STATE.trace
            if trace is None:
                return call(self, *args, **kwargs)
            return trace.use("call_module", trace.name_of(self), args, kwargs)

        def guarded_attribute(self: nn.Module, name: str) -> Any:
            value = attribute(self, name)
            if _STATE.trace is not None and isinstance(value, Tensor):
                _STATE.trace.refuse("a parameter or buffer, whose data may decide what runs")
            return value

        patched: Any = nn.Module
        patched.__call__, patched.__getattr__ = recorded_call, guarded_attribute
        try:
            yield
        finally:
            patched.__call__, patched.__getattr__ = call, attribute


def record_calls(owner: nn.Module) -> CallTrace:
    """Run the forward of ``owner`` on values without data, within :func:`recording`.

    Args:
        owner: a copy that may be changed; its children are not run.

    Raises:
        Exception: whatever the forward raises, :class:`UnrecordedError` where it cannot be followed.

    """
    forward = type(owner).forward
    trace = CallTrace(owner)
    code = forward.__code__ if isinstance(forward, types.FunctionType) else None
    if code is None or hasattr(forward, "__wrapped__") or code.co_kwonlyargcount or code.co_flags & 0x0C:
        raise UnrecordedError("a forward that is no plain function of positional arguments")
    inputs = [trace.use("placeholder", "") for _ in range(code.co_argcount - 1)]
    _STATE.trace = trace
    try:
        trace.use("output", "", forward(owner, *inputs))
    finally:
        _STATE.trace = None
    if trace.failed:
        raise UnrecordedError("something that cannot be followed, whose exception the forward caught")
    return trace
