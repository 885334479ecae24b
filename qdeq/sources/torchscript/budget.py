"""How much work an archive may ask for: its code is followed step by step, and whoever wrote it decides how far."""

from __future__ import annotations

from qdeq.files.untrusted import refuse
from qdeq.sources.torchscript.code import OPEN

__all__ = ["Budget"]

_MAX_STEPS = 1_000_000  # a scripted resnet50 takes some 30,000
_MAX_NODES = 50_000  # of the graph


class Budget:
    """Counts expressions, elements of lists and nodes of the graph."""

    def __init__(self) -> None:
        """See the class."""
        self.steps = self.nodes = 0

    def spend(self, where: str, steps: int = 1) -> None:
        """Refuse code that never ends, or takes longer than any model's."""
        self.steps += steps
        if self.steps > _MAX_STEPS:
            refuse(where, f"code that ends within {_MAX_STEPS} steps", "more", OPEN)

    def add_node(self, where: str) -> None:
        """Refuse a graph larger than any model's."""
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            refuse(where, f"a graph of at most {_MAX_NODES} nodes", "more", OPEN)
