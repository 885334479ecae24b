"""Names of the weights of RNNs: ``weight_ih_l0``, ``bias_hh_l1_reverse``, ..."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qdeq.errors import refuse
from qdeq.layers.names import rnn_suffixes
from qdeq.state_dicts.parts import Cell, Plan, ShapeOf
from qdeq.words import join

__all__ = ["RnnShape", "rnn_shapes_of", "take_rnns"]


@dataclass(frozen=True)
class RnnShape:
    """What the keys of an RNN do not tell."""

    layers: int
    bidirectional: bool

    @property
    def cells(self) -> int:
        """How many layers and directions there are."""
        return self.layers * (1 + self.bidirectional)


def rnn_shapes_of(model: nn.Module | None) -> dict[str, RnnShape]:
    """Layers and directions of every RNN of a float model, by its path; nothing for None."""
    rnns = {} if model is None else {name: m for name, m in model.named_modules() if isinstance(m, nn.RNNBase)}
    return {name: RnnShape(m.num_layers, m.bidirectional) for name, m in rnns.items()}


def _known_shape(path: str, cells: int, known: Mapping[str, RnnShape]) -> RnnShape | None:
    """The shape that a float model knows for ``path``, which may have a prefix that its own paths have not, or lack it.

    None where the RNNs that it can be differ.
    """
    if path in known:
        return known[path]
    fitting = {other: shape for other, shape in known.items() if shape.cells == cells}
    alike = {shape for other, shape in fitting.items() if _end_alike(path, other)}
    shapes = alike or set(fitting.values())
    return shapes.pop() if len(shapes) == 1 else None


def _end_alike(one: str, other: str) -> bool:
    return f".{one}".endswith(f".{other}") or f".{other}".endswith(f".{one}")


_RNN = re.compile(r"(?P<path>.*?)(?P<dot>^|\.)_all_weight_values\.(?P<at>\d+)\.param")


def take_rnns(where: str, plan: Plan, rest: dict[str, Any], shape_of: ShapeOf, known: Mapping[str, RnnShape]) -> None:
    """Move the packed cells of dynamic RNNs from ``rest`` into ``plan``; ``known`` tells what keys may not, by path.

    Raises:
        QdeqValueError: layers are missing, or directions cannot be told from layers.

    """
    rnns: dict[str, dict[int, str]] = {}
    for key, value in rest.items():
        match = _RNN.fullmatch(key)
        if match and isinstance(value, Cell):
            rnns.setdefault(match["path"], {})[int(match["at"])] = key
    for path, keys in rnns.items():
        if sorted(keys) != list(range(len(keys))):
            refuse(f"{where}: {path}", "layers counted from 0", str(sorted(keys)), "The checkpoint is not complete.")
        cells = [rest[keys[at]] for at in range(len(keys))]
        shape = _known_shape(path, len(cells), known) or _rnn_shape(where, path, cells, shape_of)
        suffixes = rnn_suffixes(len(cells), shape.bidirectional)
        for at, (cell, suffix) in enumerate(zip(cells, suffixes, strict=False)):
            del rest[keys[at]]
            plan.add_packed(where, join(path, f"weight_ih_{suffix}"), cell.ih, keys[at])
            plan.add_packed(where, join(path, f"weight_hh_{suffix}"), cell.hh, keys[at])


def _rnn_shape(where: str, path: str, cells: list[Cell], shape_of: ShapeOf) -> RnnShape:
    """Tell layers and directions by the input sizes: a layer above a bidirectional one takes twice the hidden size."""
    sizes = [((shape_of(c.ih.weight) or (0, 0))[1], (shape_of(c.hh.weight) or (0, 0))[1]) for c in cells]
    count, (first, hidden) = len(sizes), sizes[0]
    inputs = [size for size, _ in sizes]
    forward = inputs[1:] == [hidden] * (count - 1)
    both = count % 2 == 0 and inputs[1] == first and inputs[2:] == [2 * hidden] * (count - 2)
    if forward and both:
        what = "keys that tell one bidirectional layer from two forward ones"
        got = f"input and hidden size {hidden} both"
        remedy = "Pass a float model that holds this RNN: dequantize_state_dict(into=...), qdeq.open(like=...)."
        refuse(f"{where}: {path}", what, got, remedy)
    if not forward and not both:
        got = f"input sizes {inputs} with hidden size {hidden}"
        refuse(f"{where}: {path}", "the layers of one RNN", got, "The file is damaged.")
    return RnnShape(count // 2 if both else count, both)
