"""What torch would call an initializer: exporters keep the names of modules in those of nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Parameter", "module_path", "parameters"]

_WEIGHT, _BIAS = "weight", "bias"
# Operators of layers, with the input that is the bias.
_LAYERS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "MatMul": None}


@dataclass(frozen=True)
class Parameter:
    """The dotted name of a parameter, and whether torch keeps it transposed."""

    name: str
    transposed: bool = False


def parameters(graph: Any, weights: Mapping[str, int]) -> dict[str, Parameter]:
    """Initializer -> parameter, for weights and biases of layers.

    Args:
        graph: a float GraphProto.
        weights: name -> number of dimensions of initializers that it does not hold yet.

    Returns:
        Nothing where two would have one name.

    """
    held, found = {tensor.name: len(tensor.dims) for tensor in graph.initializer}, dict[str, Parameter]()
    held.update(weights)
    for node in graph.node:
        if node.op_type not in _LAYERS or node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        name, bias_at = node.input[1], _LAYERS[node.op_type]
        if name not in held or name in found:
            continue
        path = name.removesuffix(f".{_WEIGHT}") if name.endswith(f".{_WEIGHT}") else module_path(node.name) or name
        transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _is_set(node, "transB"))
        found[name] = Parameter(f"{path}.{_WEIGHT}", transposed and held[name] == 2)
        if bias_at is not None and bias_at < len(node.input) and node.input[bias_at] in held:
            found.setdefault(node.input[bias_at], Parameter(f"{path}.{_BIAS}"))
    names = [parameter.name for parameter in found.values()]
    names += [name for name in held if name not in found]
    return found if len(set(names)) == len(names) else {}


def _is_set(node: Any, name: str) -> bool:
    return any(attribute.name == name and attribute.i for attribute in node.attribute)


def module_path(node: str) -> str:
    """The dotted path in the name that torch's exporter gave a node; empty where it holds none.

    ``/layer1/layer1.0/conv1/Conv`` is of ``layer1.0.conv1``: each part is a path below the part before, and repeats the
    name of the container that it lies in.
    """
    parts = node.split("/")
    if len(parts) < 3 or parts[0]:
        return ""
    path: list[str] = []
    for part in parts[1:-1]:
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return ".".join(path)
