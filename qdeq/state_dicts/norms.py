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
    is_sorted = list(shapes) == sorted(shapes)
    norms = [path for path in paths if _is_norm(path, shapes)]
    layers = [path for path in paths if path not in norms and 2 <= len(shapes.get(f"{path}.weight", ())) <= 5]
    found = NormsBehind()
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in norms):
        ours = [path for path in norms if path.rpartition(".")[0] == owner]
        near = [path for path in layers if path.rpartition(".")[0] == owner]
        numbers = [path.rpartition(".")[2] for path in [*ours, *near]]
        numbered = all(number.isdecimal() for number in numbers)
        places = {path: int(path.rpartition(".")[2]) if numbered else paths.index(path) for path in [*ours, *near]}
        told = by_order(
            {path: places[path] for path in near},
            {path: places[path] for path in ours},
            functools.partial(_fits, shapes, near),
            ordered=numbered or not is_sorted,
        )
        found.pairs.update(told.pairs)
        found.possible.update(told.possible)
    return found


def _is_norm(path: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    return len(shapes.get(f"{path}.running_var", ())) == 1 and len(shapes.get(f"{path}.weight", (0,))) == 1


def _fits(shapes: Mapping[str, Sequence[int]], near: Sequence[str], layer: str, norm: str) -> bool:
    """Whether a layer has the channels of a norm: in its first dimension.

    Where no layer near has, the second counts: a transposed convolution's output channels.
    """
    channels = shapes[f"{norm}.running_var"][0]
    weights = {path: shapes[f"{path}.weight"] for path in near}
    if any(weight[0] == channels for weight in weights.values()):
        return weights[layer][0] == channels
    return len(weights[layer]) > 2 and weights[layer][1] == channels
