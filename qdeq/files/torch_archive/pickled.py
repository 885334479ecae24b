"""What a pickle describes, as plain records: names, objects, calls and references to storages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Call", "Global", "Instance", "Persistent"]


@dataclass(frozen=True)
class Global:
    """A name: ``module`` and ``name`` as the pickle spells them; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Instance:
    """An object of class ``cls`` that was not built: constructor arguments and state as read."""

    cls: Global
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)  # of a dict subclass
    elements: list[Any] = field(default_factory=list)  # of a list subclass


class Call(Instance):
    """A call of ``cls`` (a function or class) that was not made."""


@dataclass(eq=False)
class Persistent:
    """What ``BINPERSID`` refers to: for torch, a storage."""

    pid: Any
