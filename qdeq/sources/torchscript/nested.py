"""Quantized scripts inside an eager model: each becomes a float graph in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.mappings import find_rule
from qdeq.sources.eager.recognise import is_quantized_module
from qdeq.sources.eager.walk import Found, find_layers
from qdeq.sources.torchscript.single import float_graph
from qdeq.tree.walk import children
from qdeq.words import join

__all__ = ["Scripts", "eager_layers", "quantized_scripts"]


def quantized_scripts(model: nn.Module) -> list[tuple[str, torch.jit.ScriptModule]]:
    """Dotted path and module of every script in a model that runs something quantized, once each."""
    found: dict[int, tuple[str, torch.jit.ScriptModule]] = {}
    waiting, seen = [("", model)], set()
    while waiting:
        path, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        if not isinstance(module, torch.jit.ScriptModule):
            waiting += [(join(path, name), child) for name, child in reversed(children(module))]
        elif _is_quantized(module):
            found[id(module)] = path, module
    return list(found.values())


def _is_quantized(script: torch.jit.ScriptModule) -> bool:
    """Whether a forward names a quantized operator; a float script need not be one that can be followed."""
    try:
        text = str(script.inlined_graph)
    except (AttributeError, RuntimeError):  # without a forward
        return False
    return "quantized::" in text or "aten::quantize" in text


def eager_layers(model: nn.Module) -> list[Found]:
    """The quantized modules outside of scripts."""

    def is_script(part: nn.Module) -> bool:
        return isinstance(part, torch.jit.ScriptModule)

    found = find_layers(model, find_rule, lambda part: is_script(part) or is_quantized_module(part))
    return [layer for layer in found if not is_script(layer[1])]


@dataclass(eq=False)
class Scripts:
    """The quantized scripts of one model, as :func:`qdeq.sources.eager.assemble.assemble` takes parts built anew.

    Attributes:
        found: path and script.
        made: all layers of the model.
        mode: what becomes of the quantization of activations.
        report: gets choices.
        modules: layers of eager modules that scripts call: none.

    """

    found: Sequence[tuple[str, torch.jit.ScriptModule]]
    made: Sequence[Made]
    mode: str
    report: Report
    modules: list[Made] = field(default_factory=list)

    def build(self, memo: dict[int, Any], copy: Callable[[Any], Any]) -> None:
        """Build every float graph and set it in the memo."""
        for path, script in self.found:
            memo[id(script)] = float_graph(script, path, self.made, self.mode, self.report)

    def carry_over(self, memo: dict[int, Any]) -> None:
        """Nothing: what a script has beside its code is in the graph."""
