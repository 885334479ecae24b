"""Puts the integers of weights back where the exporter wrote floats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from qdeq.onnx_export.graph import Graph, rename
from qdeq.onnx_export.integers import Integers

__all__ = ["Folded", "fold"]

_FLOAT = 1
_SUFFIXES = {"": "", "transposed": "_transposed"}
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
Key = tuple[tuple[int, ...], bytes]


@dataclass(frozen=True)
class Folded:
    """A weight that the file has as integers.

    Attributes:
        name: of the integers in the file.
        change: what was done to the order of the values; empty for nothing.

    """

    name: str
    change: str


def fold(graph: Graph, found: dict[str, Integers], others: Iterable[tuple[Integers, ...]]) -> dict[str, Folded]:
    """Replace every float initializer that has the bits of a weight by its integers and a DequantizeLinear.

    They are found by their bits: exporters fold the transpose of a matrix into it, and call the result as they like.
    One that several weights have belongs to the one of its name.

    Args:
        graph: of the exporter; it is changed.
        found: parameter -> integers.
        others: further forms of them, as parts along the first dimension.

    Returns:
        Parameter -> where its integers are.

    """
    places: dict[Key, list[str]] = {}
    readers = graph.readers()
    for name, tensor in graph.tensors.items():
        rounds = any(node.op_type in _ROUNDING for node in readers.get(name, ()))
        array = None if tensor.data_type != _FLOAT or rounds else graph.array(name)
        if array is not None:
            places.setdefault(_key(array), []).append(name)
    result: dict[str, Folded] = {}
    front: list[object] = []
    for parts in _by_name(graph, [*_forms(found.values()), *others]):
        floats = [part.floats() for part in parts]
        key = _key(np.concatenate(floats) if len(floats) > 1 else floats[0])
        for name in places.pop(key, ()):
            front += _replace(graph, name, parts, result)
    graph.nodes[:0] = front
    return result


def _key(array: np.ndarray) -> Key:
    return array.shape, hashlib.blake2b(np.ascontiguousarray(array).tobytes(), digest_size=16).digest()


def _forms(found: Iterable[Integers]) -> Iterator[tuple[Integers, ...]]:
    for weight in found:
        yield (weight,)
        if weight.values.ndim == 2:
            yield (weight.transposed(),)


def _by_name(graph: Graph, forms: list[tuple[Integers, ...]]) -> list[tuple[Integers, ...]]:
    """First those that the graph has under their own name."""
    return sorted(forms, key=lambda parts: bool(parts[0].change) or parts[0].names[0] not in graph.tensors)


def _replace(graph: Graph, name: str, parts: tuple[Integers, ...], result: dict[str, Folded]) -> Iterator[object]:
    """The nodes that give the initializer ``name`` from now on."""
    stem = parts[0].names[0] + _SUFFIXES.get(parts[0].change, "_reordered")
    del graph.tensors[name]
    if name != stem:
        new = graph.new_name(stem)
        for node in graph.nodes:
            rename(node, {name: new})
        name = new
    outputs = [name] if len(parts) == 1 else [graph.new_name(f"{name}_{number}") for number in range(len(parts))]
    for part, output in zip(parts, outputs, strict=True):
        inputs = [
            graph.add(f"{output}_{what}", array)
            for what, array in (("quantized", part.values), ("scale", part.scale), ("zero_point", part.zero_point))
        ]
        for own in part.names:
            result.setdefault(own, Folded(inputs[0], part.change))
        attributes = {} if part.axis is None else {"axis": part.axis}
        yield graph.node("DequantizeLinear", inputs, output, **attributes)
    if len(parts) > 1:
        yield graph.node("Concat", outputs, name, axis=0)
