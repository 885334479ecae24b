"""What a float graph is built with, beside the quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.graph.grids import State

__all__ = ["Materials"]


@dataclass(frozen=True, eq=False)
class Materials:
    """What a float graph is built with.

    Attributes:
        prefix: dotted path of the graph's module in the whole model.
        mode: what becomes of the quantization of activations.
        report: gets what is dropped, and choices.
        layers: dotted name in the graph -> the layer of a ``call_module`` target or an operator, made.
        parameters: dotted name in the graph -> float parameter made from a quantized one.
        copy: gives the float copy of a module or tensor of the source.
        returns: target of a call of another graph -> the grids of what that one returns.

    """

    prefix: str
    mode: str
    report: Report
    layers: Mapping[str, Made]
    parameters: Mapping[str, nn.Parameter]
    copy: Callable[[Any], Any]
    returns: Mapping[str, State] = field(default_factory=dict)
