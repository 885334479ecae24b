"""How many dimensions a tensor has, where the operators that made it tell: scripted code branches and loops on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from qdeq.sources.torchscript.objects import Stored

__all__ = ["RANK", "rank_after", "rank_of"]

RANK = "rank"
"""Key of a node's ``meta``: the number of its dimensions; absent where it is not known."""

_CONV = re.compile(r"conv(?:_transpose)?([123])d")
_SAME = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "silu",
        "mish",
        "sigmoid",
        "tanh",
        "softmax",
        "log_softmax",
        "gelu",
        "elu",
        "celu",
        "selu",
        "leaky_relu",
        "prelu",
        "softplus",
        "threshold",
        "clamp",
        "clamp_min",
        "clamp_max",
        "clip",
        "neg",
        "abs",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "square",
        "dropout",
        "feature_dropout",
        "batch_norm",
        "instance_norm",
        "layer_norm",
        "group_norm",
        "batch_norm1d",
        "batch_norm2d",
        "batch_norm3d",
        "linear",
        "linear_relu",
        "linear_dynamic",
        "linear_relu_dynamic",
        "linear_dynamic_fp16",
        "linear_relu_dynamic_fp16",
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "adaptive_avg_pool1d",
        "adaptive_avg_pool2d",
        "adaptive_avg_pool3d",
        "max_pool1d",
        "max_pool2d",
        "max_pool3d",
        "pad",
        "constant_pad_nd",
        "reflection_pad1d",
        "reflection_pad2d",
        "replication_pad1d",
        "replication_pad2d",
        "upsample_nearest1d",
        "upsample_nearest2d",
        "upsample_nearest3d",
        "upsample_linear1d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "upsample_trilinear3d",
        "pixel_shuffle",
        "channel_shuffle",
        "quantize_per_tensor",
        "quantize_per_channel",
        "dequantize",
        "to",
        "contiguous",
        "clone",
        "detach",
        "transpose",
        "slice",
        "narrow",
        "flip",
        "roll",
        "index_select",
        "masked_fill",
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "_convolution",
    ]
)  # those of one tensor; convolutions of floats take a batch or a single one
_BROADCAST = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "add_relu",
        "mul_relu",
        "add_scalar",
        "mul_scalar",
        "add_scalar_relu",
        "minimum",
        "maximum",
    ]
)
_LISTED = frozenset(("view", "reshape", "permute", "expand"))


def rank_of(value: Any) -> int | None:
    """The number of dimensions of a tensor; None where it is not known."""
    if isinstance(value, Stored):
        return len(value.tensor.shape)
    return value.meta.get(RANK) if isinstance(value, fx.Node) else None


def rank_after(name: str, args: Sequence[Any]) -> int | None:
    """The number of dimensions of what an operator gives; None where it is not known.

    Args:
        name: such as ``aten::relu``.
        args: what it is given by position.

    """
    namespace, _, own = name.partition("::")
    own = own.removesuffix("_")
    if namespace == "quantized" and (found := _CONV.match(own)):
        return int(found[1]) + 2
    if own in _BROADCAST:
        ranks = [rank_of(value) for value in args if isinstance(value, fx.Node | Stored)]
        return max((r for r in ranks if r is not None), default=None) if None not in ranks else None
    if own in _LISTED:
        return len(args[1]) if len(args) > 1 and isinstance(args[1], list) else None
    first = rank_of(args[0][0] if own in ("cat", "cat_relu") and args and args[0] else args[0]) if args else None
    if first is None:
        return None
    if own == "flatten":
        return _flattened(first, args[1:])
    step = {"unsqueeze": 1, "select": -1, "cat": 0, "cat_relu": 0}.get(own, 0 if own in _SAME else None)
    return None if step is None else first + step


def _flattened(rank: int, bounds: Sequence[Any]) -> int | None:
    start, stop = [*bounds, 0, -1][:1] + [*bounds[1:2], -1][:1]
    if not isinstance(start, int) or not isinstance(stop, int) or rank == 0:
        return None
    return rank - (stop % rank - start % rank)
