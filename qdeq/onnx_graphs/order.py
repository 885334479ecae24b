"""The order in which nodes can run. ONNX asks files to keep it; a graph that has none is refused."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

from qdeq.errors import refuse
from qdeq.onnx_graphs.package import shown

__all__ = ["in_order", "names_read", "needed", "subgraphs", "tensors_in"]

_TENSOR, _GRAPH, _GRAPHS = 4, 5, 10  # AttributeProto.AttributeType
_DAMAGED = "The model is damaged: get a fresh copy."


def subgraphs(node: Any) -> Iterator[Any]:
    """The graphs in the attributes of a node: bodies of loops, branches."""
    for attribute in node.attribute:
        if attribute.type == _GRAPH:
            yield attribute.g
        elif attribute.type == _GRAPHS:
            yield from attribute.graphs


def names_read(node: Any) -> Iterator[str]:
    """Every name that a node reads, or a graph in it does, whether it is the graph's own or not."""
    yield from (name for name in node.input if name)
    for graph in subgraphs(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from names_read(inner)


def in_order(where: str, nodes: Any, known: set[str]) -> list[Any]:
    """The nodes, each behind those whose outputs it reads; as they are where that holds already.

    Args:
        where: file, for errors.
        nodes: of a graph.
        known: inputs and initializers of the graph, and all names of the graphs around it.

    Raises:
        QdeqValueError: nodes that read one another's outputs in a circle, a name given twice or read and not given.

    """
    nodes = list(nodes)
    giver: dict[str, int] = {}
    for at, node in enumerate(nodes):
        for name in node.output:
            if name and (name in giver or name in known):
                refuse(
                    f"{where}: {shown(name)}", "one node that gives it", f"a second one, {node.op_type[:60]}", _DAMAGED
                )
            giver[name] = at
    waits: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for at, node in enumerate(nodes):
        own = {name for name in node.input if name}
        for name in own - known - giver.keys():
            refuse(f"{where}: {shown(name)}", "a node, input or initializer that gives it", "none", _DAMAGED)
        needs = {giver[name] for name in names_read(node) if name in giver and name not in node.output}
        needs |= {at} if own & set(node.output) else set()
        waits.append(needs)
        for other in needs:
            readers.setdefault(other, []).append(at)
    ready = [at for at, needs in enumerate(waits) if not needs]
    heapq.heapify(ready)
    ordered = []
    while ready:
        at = heapq.heappop(ready)
        ordered.append(nodes[at])
        for reader in readers.get(at, ()):
            waits[reader].discard(at)
            if not waits[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        stuck = next(node for node, needs in zip(nodes, waits, strict=True) if needs)
        got = f"a circle with {shown(stuck.name or next(iter(stuck.output), ''))} ({stuck.op_type[:60]})"
        refuse(f"{where}: graph", "nodes that can run one after another", got, _DAMAGED)
    return ordered


def tensors_in(graph: Any) -> Iterator[Any]:
    """Every TensorProto with values of its own: initializers, and attributes of nodes, in all graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == _TENSOR:
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from tensors_in(inner)


def needed(nodes: list[Any], outputs: set[str]) -> list[Any]:
    """The nodes, without those of which nothing is read: what computed constants and scales that went."""
    wanted, result = set(outputs), []
    for node in reversed(nodes):
        if not node.output or any(name in wanted for name in node.output):
            wanted.update(names_read(node))
            result.append(node)
    return result[::-1]
