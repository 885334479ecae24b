"""Builds the float graphs of a model, the inner ones first, from layers that are made already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.carry_over import carry_over
from qdeq.sources.eager.walk import Found
from qdeq.sources.fx.front import converted_graphs, graph_calls, program_of
from qdeq.sources.graph.emit import emit
from qdeq.sources.graph.grids import State
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.parameters import Parameters
from qdeq.sources.graph.program import Program
from qdeq.tree.walk import children
from qdeq.words import join

__all__ = ["Graphs"]


class Graphs:
    """The converted graphs of one model, and the layers that they run.

    Args:
        model: the whole model.
        made: all its layers.
        found: its quantized modules.
        mode: what becomes of the quantization of activations.
        report: gets choices.

    Attributes:
        modules: layers of quantized modules that run as nodes of graphs alone.
        eager: layers of all other quantized modules.

    """

    def __init__(
        self, model: nn.Module, made: Sequence[Made], found: Sequence[Found], mode: str, report: Report
    ) -> None:
        self._mode, self._report = mode, report
        self._graphs = converted_graphs(model)
        called = graph_calls(model)
        sources = {path: module for path, module, _, _ in found}
        self.modules: list[Made] = []
        self.eager: list[Made] = []
        self._by_module: dict[int, Made] = {}
        self._operators: dict[str, Made] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        for part in made:
            path = part.layer.path
            if isinstance(part.module, Parameters):
                self._parameters.update({join(path, own): value for own, value in part.module.named_parameters()})
            elif path not in sources:
                self._operators[path] = part
            elif id(sources[path]) in called:
                self.modules.append(part)
                self._by_module[id(sources[path])] = part
            else:
                self.eager.append(part)
        for part in (*self.modules, *self._operators.values()):
            part.placed = True

    def build(self, memo: dict[int, Any], copy: Callable[[Any], Any]) -> None:
        """Build every float graph and set it in the memo.

        Args:
            memo: id of an object of the source -> its float form; has all layers.
            copy: copies an object of the source with that memo.

        """
        returns: dict[int, State] = {}
        for path, module in reversed(self._graphs):
            program = program_of(module)
            emitted = emit(program, self._materials(path, program, copy, returns))
            _keep_uncalled(module, emitted.module, "", program, copy)
            returns[id(module)] = emitted.returns
            memo[id(module)] = emitted.module

    def carry_over(self, memo: dict[int, Any]) -> None:
        """Give each float graph module the user's attributes and hooks of the quantized one."""
        for path, module in self._graphs:
            carry_over(module, memo[id(module)], path, memo, self._report)

    def _materials(
        self, path: str, program: Program, copy: Callable[[Any], Any], returns: dict[int, State]
    ) -> Materials:
        before = f"{path}." if path else ""
        operators = {
            name.removeprefix(before): part for name, part in self._operators.items() if name.startswith(before)
        }
        modules = {name: self._by_module[id(m)] for name, m in program.modules.items() if id(m) in self._by_module}
        for name, part in modules.items():
            held = part.layer.path
            if held == join(path, f"{name}.0"):  # of a fused module, which the graph has no more
                part.layer.path = join(path, name)
                self._report.move(held, part.layer.path)
        return Materials(
            path,
            self._mode,
            self._report,
            operators | modules,
            {name.removeprefix(before): value for name, value in self._parameters.items() if name.startswith(before)},
            copy,
            {name: returns[id(m)] for name, m in program.modules.items() if id(m) in returns},
        )


def _keep_uncalled(
    source: nn.Module, target: nn.Module, path: str, program: Program, copy: Callable[[Any], Any]
) -> None:
    """Give a float graph the modules that the int8 one holds and does not call: users may do so."""
    for name, child in children(source):
        at = join(path, name)
        if at in program.modules:
            continue
        if type(child) is not nn.Module:
            target.add_module(name, copy(child))
            continue
        held = target._modules.get(name) or nn.Module()
        _keep_uncalled(child, held, at, program, copy)
        if held._modules:
            target.add_module(name, held)
