"""torch's quantized operators -> what they are on floats.

Two tables by the operator's name, without ``quantized::``: :data:`PACKED` has those with a packed weight, which become
a float module, :data:`FUNCTIONS` all others. An operator that ends in ``_relu`` is the one before it and a ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional as F

from qdeq.sources.graph.schema import Call

__all__ = ["ACTIVATIONS", "FUNCTIONS", "IGNORES_SCALE", "PACKED", "FloatCall", "PackedOperator", "float_function"]

FloatCall: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
_RELU = "_relu"

# An activation that a layer owns, as a function of its output and the arguments of its class.
ACTIVATIONS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.ReLU: F.relu,
    nn.LeakyReLU: F.leaky_relu,
    nn.Tanh: torch.tanh,
}


@dataclass(frozen=True)
class PackedOperator:
    """An operator with a packed weight.

    Attributes:
        kind: class of the float module.
        activation: what it applies after the layer; None for nothing.
        dynamic: it quantizes its input anew at every call and gives floats.
        inputs: names of the arguments that the float module takes.
        added: name of the argument that is added to the layer's output; empty for none.
        half: its weight is float16 where it holds no integers.

    """

    kind: type[nn.Module]
    activation: type[nn.Module] | None = None
    dynamic: bool = False
    inputs: tuple[str, ...] = ("qx",)
    added: str = ""
    half: bool = False


def _linears() -> dict[str, PackedOperator]:
    found = {"linear_tanh": PackedOperator(nn.Linear, nn.Tanh, inputs=("X",))}
    found["linear_leaky_relu"] = PackedOperator(nn.Linear, nn.LeakyReLU, inputs=("X",))
    for relu, activation in (("", None), (_RELU, nn.ReLU)):
        found[f"linear{relu}"] = PackedOperator(nn.Linear, activation, inputs=("X",))
        found[f"linear{relu}_dynamic"] = PackedOperator(nn.Linear, activation, dynamic=True, inputs=("X",))
        found[f"linear{relu}_dynamic_fp16"] = PackedOperator(
            nn.Linear, activation, dynamic=True, inputs=("X",), half=True
        )
    return found


def _convolutions() -> dict[str, PackedOperator]:
    found = {}
    for size in ("1d", "2d", "3d"):
        kind, transposed = getattr(nn, f"Conv{size}"), getattr(nn, f"ConvTranspose{size}")
        found[f"conv{size}"] = PackedOperator(kind)
        found[f"conv{size}{_RELU}"] = PackedOperator(kind, nn.ReLU)
        found[f"conv{size}_dynamic"] = PackedOperator(kind, dynamic=True)
        found[f"conv_transpose{size}"] = PackedOperator(transposed)
        found[f"conv_transpose{size}_dynamic"] = PackedOperator(transposed, dynamic=True)
    found["conv2d_add"] = PackedOperator(nn.Conv2d, added="qaccum")
    found[f"conv2d_add{_RELU}"] = PackedOperator(nn.Conv2d, nn.ReLU, added="qaccum")
    return found


def _embeddings() -> dict[str, PackedOperator]:
    bag = "indices", "offsets", "per_sample_weights"
    found = {f"embedding_{size}": PackedOperator(nn.Embedding, inputs=("indices",)) for size in ("byte", "4bit")}
    return found | {f"embedding_bag_{size}": PackedOperator(nn.EmbeddingBag, inputs=bag) for size in ("byte", "4bit")}


PACKED: dict[str, PackedOperator] = {**_linears(), **_convolutions(), **_embeddings()}


def _plain(function: Callable[..., Any], *names: str) -> Callable[..., FloatCall]:
    """The float call of a function whose arguments behind the first go by ``names``."""

    def call(x: Any, *values: Any) -> FloatCall:
        return function, (x,), dict(zip(names, values, strict=True))

    return call


def _binary(function: Callable[..., Any]) -> Callable[..., FloatCall]:
    def call(a: Any, b: Any) -> FloatCall:
        # Either may be a number; torch's functions want the tensor first, and both functions commute.
        return function, (a, b) if isinstance(a, fx.Node) else (b, a), {}

    return call


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: Any) -> FloatCall:
    return F.batch_norm, (x, mean, var, weight, bias, False, 0.0, eps), {}


def _elu(x: Any, alpha: Any, scale: Any, input_scale: Any) -> FloatCall:
    if (scale, input_scale) == (1, 1):
        return F.elu, (x,), {"alpha": alpha}
    return torch.ops.aten.elu, (x, alpha, scale, input_scale), {}


def _prelu(x: Any, weight: Any) -> FloatCall:
    return F.prelu, (x, weight), {}


_POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

FUNCTIONS: dict[str, Callable[..., FloatCall]] = {
    "add": _binary(torch.add),
    "add_scalar": _binary(torch.add),
    "mul": _binary(torch.mul),
    "mul_scalar": _binary(torch.mul),
    "matmul": lambda a, b: (torch.matmul, (a, b), {}),
    "cat": lambda tensors, dim: (torch.cat, (tensors, dim), {}),
    **dict.fromkeys(("batch_norm", "batch_norm1d", "batch_norm2d", "batch_norm3d"), _batch_norm),
    "layer_norm": _plain(F.layer_norm, "normalized_shape", "weight", "bias", "eps"),
    "group_norm": _plain(F.group_norm, "num_groups", "weight", "bias", "eps"),
    "instance_norm": _plain(F.instance_norm, "weight", "bias", "eps"),
    "hardswish": _plain(F.hardswish),
    "elu": _elu,
    "celu": _plain(F.celu, "alpha"),
    "leaky_relu": _plain(F.leaky_relu, "negative_slope", "inplace"),
    "sigmoid": _plain(torch.sigmoid),
    "softmax": _plain(F.softmax, "dim"),
    "dropout": _plain(F.dropout, "p", "training"),
    "prelu": _prelu,
    "relu6": _plain(F.relu6, "inplace"),
    "clamp": _plain(torch.clamp, "min", "max"),
    "threshold": _plain(F.threshold, "threshold", "value"),
    "max_pool1d": _plain(F.max_pool1d, *_POOL),
    "max_pool2d": _plain(F.max_pool2d, *_POOL),
}


# torch's kernel returns its input, on the input's grid, whatever scale it is given.
IGNORES_SCALE = frozenset({"dropout"})


def float_function(call: Call) -> tuple[FloatCall, bool] | None:
    """The float call of an operator without a packed weight, and whether a ReLU follows; None for an unknown one."""
    name = call.name
    relu = name not in FUNCTIONS and name.endswith(_RELU)
    known = FUNCTIONS.get(name.removesuffix(_RELU) if relu else name)
    return None if known is None else (known(*call.values), relu)
