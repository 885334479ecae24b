"""Runs each node of a rebuilt ``fake_quant`` graph on the int8 graph's own values, and compares what both give.

Both graphs call a value by the same name; what the float graph adds behind a node (an activation, a sum, a rounding)
belongs to that node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from qdeq.grids.modules import PostProcess
from tools.agreement import Agreement

__all__ = ["node_agreement"]


class _Recorder(fx.Interpreter):
    """Keeps a float copy of each tensor, before anything writes to it."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Any] = {}
        self.scales: dict[str, float] = {}

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        self.values[node.name] = _float(result)
        if isinstance(result, Tensor) and result.is_quantized:
            self.scales[node.name] = result.q_scale()
        return result


def _float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dequantize() if value.is_quantized else value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_float(item) for item in value)
    return value


class _Replay(fx.Interpreter):
    """Gives each node the int8 graph's values for its arguments, but for those that belong to the same node."""

    def __init__(self, module: fx.GraphModule, values: dict[str, Any]) -> None:
        super().__init__(module)
        self._values = values
        self._owner: dict[fx.Node, str] = {}
        self.results: dict[str, Any] = {}
        self.rounded: set[str] = set()

    def run_node(self, node: fx.Node) -> Any:
        own = node.name if node.name in self._values else self._owner[node.all_input_nodes[0]]
        self._owner[node] = own
        result = super().run_node(node)
        self.results[own] = result
        if node.op == "call_module" and isinstance(self.module.get_submodule(str(node.target)), PostProcess):
            self.rounded.add(own)
        return result

    def map_nodes_to_values(self, args: Any, n: fx.Node) -> Any:
        own = self._owner[n]

        def value(node: fx.Node) -> Any:
            return self.env[node] if self._owner[node] == own else _float(self._values[self._owner[node]])

        return fx.map_arg(args, value)


def node_agreement(int8: fx.GraphModule, rebuilt: nn.Module, *inputs: Tensor) -> dict[str, Agreement]:
    """Per rounded node of ``rebuilt``: how many elements equal the int8 graph's, for that graph's own inputs."""
    with torch.no_grad():
        recorder = _Recorder(int8)
        recorder.run(*inputs)
        replay = _Replay(rebuilt, recorder.values)
        replay.run(*inputs)
    found = {}
    for name in replay.rounded:
        ours, theirs = replay.results[name], recorder.values[name]
        steps = float((ours - theirs).abs().max()) / recorder.scales[name]
        found[name] = Agreement(int((ours == theirs).sum()), ours.numel(), steps)
    return found
