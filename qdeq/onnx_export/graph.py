"""A graph that an exporter wrote, as the passes of this room change it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from qdeq.onnx_graphs.order import names_read, needed, subgraphs
from qdeq.onnx_graphs.package import onnx_library

__all__ = ["Graph"]

_FLOAT, _VALUE = 1, "value"


class Graph:
    """The graph of a model. Constants are initializers, and nothing passes a value on under another name.

    Attributes:
        model: the ModelProto, which :meth:`finish` completes.
        nodes: in the order in which they run.
        tensors: name -> TensorProto of every initializer.
        inputs: names.
        outputs: names.

    """

    def __init__(self, model: Any) -> None:
        self.model = model
        graph = model.graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.tensors]
        self.outputs = [value.name for value in graph.output]
        self._taken = {*self.tensors, *self.inputs}
        for node in graph.node:
            self._taken.update(node.output)
        self.nodes = self._plain(graph.node)
        self._arrays: dict[str, np.ndarray] = {}

    def _plain(self, nodes: Iterable[Any]) -> list[Any]:
        """Without Constant and Identity, which hide a scale or a weight from whoever reads it."""
        same: dict[str, str] = {}
        kept = []
        for node in nodes:
            rename(node, same)
            if node.op_type == "Constant" and node.attribute[0].name == _VALUE:
                tensor = self.tensors[node.output[0]] = node.attribute[0].t
                tensor.name = node.output[0]
            elif node.op_type == "Identity" and node.output[0] not in self.outputs:
                same[node.output[0]] = node.input[0]
            else:
                kept.append(node)
        return kept

    def array(self, name: str) -> np.ndarray | None:
        """The value of an initializer; None for anything else."""
        if name not in self.tensors:
            return None
        if name not in self._arrays:
            self._arrays[name] = onnx_library().numpy_helper.to_array(self.tensors[name])
        return self._arrays[name]

    def add(self, name: str, array: np.ndarray) -> str:
        """Add an initializer; if its name is taken it gets a number."""
        name = self.new_name(name)
        self.tensors[name] = onnx_library().numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def new_name(self, wish: str) -> str:
        """A name that nothing has yet."""
        numbered = (f"{wish}_{number}" for number in itertools.count(1))
        name = next(name for name in itertools.chain((wish,), numbered) if name not in self._taken)
        self._taken.add(name)
        return name

    def node(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> Any:
        """A new node, which is not yet in :attr:`nodes`; it is called by its output."""
        return onnx_library().helper.make_node(op, list(inputs), [output], name=f"{output}/{op}", **attributes)

    def readers(self) -> dict[str, list[Any]]:
        """Name -> the nodes that read it, also within them."""
        found: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in set(names_read(node)):
                found.setdefault(name, []).append(node)
        return found

    def producers(self) -> dict[str, Any]:
        """Name -> the node that gives it."""
        return {name: node for node in self.nodes for name in node.output}

    def counts(self) -> Counter[str]:
        """How many nodes of each operator."""
        return Counter(node.op_type for node in self.nodes)

    def finish(self) -> Any:
        """The model, with the nodes and initializers that are read: ONNX Runtime runs the others, too."""
        nodes = needed(self.nodes, set(self.outputs))
        read = {name for node in nodes for name in names_read(node)} | set(self.outputs)
        graph = self.model.graph
        tensors = [tensor for name, tensor in self.tensors.items() if name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(tensors)
        return self.model


def rename(node: Any, names: dict[str, str]) -> None:
    """Let a node, and the graphs within it, read other values."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for inner in subgraphs(node):
        for one in inner.node:
            rename(one, names)
        for output in inner.output:
            output.name = names.get(output.name, output.name)
