"""Gives one module a changed forward, and takes it away again.

A module whose forward calls functions such as ``F.avg_pool2d`` on quantized values has no child to attach a rounding
to. Its forward is traced with torch.fx, calls of child modules are put in, and the generated code becomes the forward
of a subclass made for this one module. The module keeps its identity, attributes, hooks and parameter names, and is
still an instance of the user's class.
"""

from __future__ import annotations

import types
from typing import Any, cast

from torch import fx, nn

__all__ = ["restore", "rewrite"]


class _Rewritten:
    """Marks the generated subclasses; copying and pickling rebuild the subclass from its code."""

    _qdeq_base: type[nn.Module]
    _qdeq_code: tuple[str, dict[str, Any]]
    _qdeq_children: tuple[str, ...]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        del protocol
        return _revive, (self._qdeq_base, *self._qdeq_code, self._qdeq_children), self.__dict__


def rewrite(module: nn.Module, graph: fx.Graph, children: dict[str, nn.Module]) -> None:
    """Let ``graph`` be the forward of ``module``.

    Args:
        module: changed in place: its class becomes a subclass of its class.
        graph: calls children of ``module`` by name, those in ``children`` included.
        children: new child modules by name.

    """
    for name, child in children.items():
        module.add_module(name, child)
    code = graph.python_code("self")
    names = {
        key: _Module(value.__name__) if isinstance(value, types.ModuleType) else value
        for key, value in code.globals.items()
    }
    module.__class__ = _subclass(type(module), code.src, names, tuple(children))


def restore(module: nn.Module) -> None:
    """Undo :func:`rewrite` on ``module``; any other module is left alone."""
    if isinstance(module, _Rewritten):
        for name in module._qdeq_children:
            delattr(module, name)
        cast(Any, module).__class__ = module._qdeq_base


class _Module(str):
    """The name of a Python module that generated code refers to; module objects cannot be pickled."""


def _subclass(base: type[nn.Module], source: str, names: dict[str, Any], children: tuple[str, ...]) -> type[nn.Module]:
    space = {key: _find_module(value) if isinstance(value, _Module) else value for key, value in names.items()}
    exec(source, space)
    members = {
        "__module__": base.__module__,
        "__doc__": base.__doc__,
        "forward": space["forward"],
        "_qdeq_base": base,
        "_qdeq_code": (source, names),
        "_qdeq_children": children,
    }
    return cast(type[nn.Module], type(base.__name__, (_Rewritten, base), members))


def _find_module(name: str) -> types.ModuleType:
    import importlib

    return importlib.import_module(name)


def _revive(base: type[nn.Module], source: str, names: dict[str, Any], children: tuple[str, ...]) -> nn.Module:
    cls = _subclass(base, source, names, children)
    return cls.__new__(cls)
