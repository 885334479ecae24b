"""Every module of a tree, and what modules hold in plain attributes."""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = [
    "ATOMS",
    "CONTAINERS",
    "HOLDS_NOTHING",
    "MODULE_INTERNALS",
    "children",
    "empty_containers",
    "every_module",
    "has_forward",
    "is_half_made",
    "is_library_module",
    "own_tensors",
    "owner_of",
    "plain_values",
    "shallow_copy",
]

# Types whose objects never change and hold nothing else: deepcopy gives the object itself.
ATOMS: frozenset[type] = frozenset(
    {bool, int, float, complex, str, bytes, type(None), type(...), range, type, torch.dtype, torch.device}
    | {types.FunctionType, types.BuiltinFunctionType}
)
# What every module's __dict__ holds of torch's own.
MODULE_INTERNALS = frozenset(nn.Module().__dict__)
CONTAINERS = frozenset({dict, OrderedDict, set, list})
# Types of attributes that are neither tensors nor objects of TorchScript.
HOLDS_NOTHING = ATOMS | CONTAINERS | {tuple}


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of each registered child; none for the convolutions that ``torch.load`` leaves half made."""
    return [(name, child) for name, child in module.__dict__.get("_modules", {}).items() if child is not None]


def is_half_made(module: nn.Module) -> bool:
    """Whether ``torch.load`` made a module and left out what ``nn.Module.__init__`` sets up.

    A whole int8 model that was pickled comes back with such ``nnq.Conv*`` objects; they hold their weight and bias.
    """
    return "_modules" not in vars(module)


def own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Name and value of each parameter and buffer that is registered in ``module`` itself."""
    own = module.__dict__
    registered = [*own.get("_parameters", {}).items(), *own.get("_buffers", {}).items()]
    return [(name, value) for name, value in registered if value is not None]


def has_forward(module: nn.Module) -> bool:
    """Whether a module can be called: ModuleList, ModuleDict and bare namespaces have a forward that only raises."""
    return type(module).forward is not nn.Module.forward and not isinstance(module, nn.ModuleList | nn.ModuleDict)


def owner_of(modules: Mapping[str, nn.Module], path: str) -> str:
    """The nearest ancestor of ``path`` that has a forward of its own."""
    owner = path
    while owner:
        owner = owner.rpartition(".")[0]
        if has_forward(modules[owner]):
            return owner
    return ""


def every_module(model: nn.Module, *, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """``list(model.named_modules(...))``, without a generator in a generator for each level."""
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()

    def visit(path: str, module: nn.Module) -> None:
        if remove_duplicate and id(module) in seen:
            return
        seen.add(id(module))
        found.append((path, module))
        for name, child in children(module):
            visit(f"{path}.{name}" if path else name, child)

    visit("", model)
    return found


def shallow_copy(module: nn.Module) -> nn.Module:
    """A module of the same class with containers of its own that hold the same objects; no method is called."""
    copied = type(module).__new__(type(module))
    for name, value in vars(module).items():
        copied.__dict__[name] = type(value)(value) if type(value) in CONTAINERS else value
    return copied


def empty_containers(module: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy with the empty containers of ``module``: most of what it would copy, each at a high price."""
    return {id(value): type(value)() for value in vars(module).values() if type(value) in CONTAINERS and not value}


def is_library_module(module: nn.Module) -> bool:
    """Whether a module's class is one of the layers of torch or qdeq, so that its forward is known."""
    return type(module).__module__.startswith(("torch.nn.", "torch.ao.", "qdeq.layers.", "qdeq.grids."))


def plain_values(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the plain attributes of ``module``; lists, tuples, sets and dicts are opened.

    The name reads as Python does: ``blocks[0]``, ``heads['a']``. What torch registers is not among them, nor are
    numbers, strings, functions and the like, which hold nothing.
    """
    own = module.__dict__
    extra = own.keys() - MODULE_INTERNALS
    stack = [(name, own[name]) for name in own if name in extra and type(own[name]) not in ATOMS] if extra else []
    seen: set[int] = set()
    while stack:
        name, value = stack.pop(0)
        if isinstance(value, dict | list | tuple | set | frozenset):
            if id(value) not in seen:
                seen.add(id(value))
                items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
                stack += [(f"{name}[{key!r}]", item) for key, item in items if type(item) not in ATOMS]
        else:
            yield name, value
