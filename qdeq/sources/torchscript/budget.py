"""How much work an archive may ask for: its code is followed step by step, and whoever wrote it decides how far."""

from __future__ import annotations

from qdeq.files.untrusted import refuse
from qdeq.sources.torchscript.code import OPEN

__all__ = ["Budget"]

_MAX_STEPS = 500_000  # a scripted mobilenet_v2 takes 16,000
_MAX_NODES = 10_000  # of the graph; that mobilenet_v2 has 300


class Budget:
    """Counts expressions, elements of lists and nodes of the graph."""

    def __init__(self, path: str) -> None:
        """Begin; ``path`` is the archive, for errors."""
        self._path = path
        self._steps = self._nodes = 0

    def spend(self) -> None:
        """Refuse code that never ends, or takes longer than any model's."""
        self._steps += 1
        if self._steps > _MAX_STEPS:
            refuse(self._path, f"code that ends within {_MAX_STEPS} steps", "more", OPEN)

    def add_node(self, where: str) -> None:
        """Refuse a graph larger than any model's."""
        self._nodes += 1
        if self._nodes > _MAX_NODES:
            refuse(where, f"a graph of at most {_MAX_NODES} nodes", "more", OPEN)
