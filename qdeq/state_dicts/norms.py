"""Which batch norm follows which layer, by the names and shapes of a state dict: there is no forward to ask."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from qdeq.tree.norms import NormsBehind, by_order

__all__ = ["norms_behind_names"]


def norms_behind_names(shapes: Mapping[str, Sequence[int]]) -> NormsBehind:
    """Find the batch norm behind each linear and convolution of a float state dict.

    A layer and its norm lie in the same module. In a file that sorts its names (safetensors) only the numbers of
    modules tell an order, and otherwise the channels alone.

    Args:
        shapes: name -> shape of each tensor, in the order of the state dict.

    """
    paths = list(dict.fromkeys(name.rpartition(".")[0] for name in shapes))
    tensors = [name for name, shape in shapes.items() if shape]  # a safetensors file has its integer counters apart
    is_sorted = tensors == sorted(tensors)
    norms = [path for path in paths if _is_norm(path, shapes)]
    layers = [path for path in paths if path not in norms and 2 <= len(shapes.get(f"{path}.weight", ())) <= 5]
    found = NormsBehind()
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in norms):
        ours = [path for path in norms if path.rpartition(".")[0] == owner]
        near = [path for path in layers if path.rpartition(".")[0] == owner]
        numbers = [path.rpartition(".")[2] for path in [*ours, *near]]
        numbered = all(number.isdecimal() for number in numbers)
        places = {path: int(path.rpartition(".")[2]) if numbered else paths.index(path) for path in [*ours, *near]}
        ordered = numbered or not is_sorted
        told = by_order(
            {path: places[path] for path in near},
            {path: places[path] for path in ours},
            functools.partial(_may_fit, shapes),
            None if ordered else functools.partial(_fits, shapes),
            ordered=ordered,
        )
        found.pairs.update(told.pairs)
        found.possible.update(told.possible)
    return found


def _is_norm(path: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    return len(shapes.get(f"{path}.running_var", ())) == 1 and len(shapes.get(f"{path}.weight", (0,))) == 1


def _fits(shapes: Mapping[str, Sequence[int]], layer: str, norm: str) -> bool:
    """Whether a layer has the channels of a norm, in its first dimension."""
    return shapes[f"{layer}.weight"][0] == shapes[f"{norm}.running_var"][0]


def _may_fit(shapes: Mapping[str, Sequence[int]], layer: str, norm: str) -> bool:
    """Whether it has them, or would have as a transposed convolution, in its second.

    Where nothing tells the order these may as well be the input channels of the layer behind the norm.
    """
    weight = shapes[f"{layer}.weight"]
    return _fits(shapes, layer, norm) or (len(weight) > 2 and weight[1] == shapes[f"{norm}.running_var"][0])
