"""What packed parameters look like taken apart: the classes that hold them, and the states that torch saves of them.

A live object is taken apart by torch's own ``unpack()``. A state is what its ``__getstate__`` gives, an archive holds,
or a state dict of linears: nested tuples and lists around tensors, which may be of any kind, live or described in a
file, because nothing here looks at them. The functions for states return None for what is no such state.

Sources: ``ATen/native/quantized/cpu/{fbgemm_utils.cpp, conv_serialization.h, EmbeddingPackedParams.h}``,
``native/RNN.cpp``, ``native/xnnpack/OpContext.h``, ``torch/ao/nn/quantized/modules/linear.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqError, expected
from qdeq.weights.direct_conv import ConvGeometry, is_direct_weight
from qdeq.weights.integer_types import scheme_of

__all__ = [
    "CELL",
    "CONV2D",
    "CONV3D",
    "EMBEDDING",
    "LINEAR",
    "SPARSE_LINEAR",
    "cell_parts",
    "conv_geometry",
    "conv_parts",
    "embedding_weight",
    "is_lost",
    "is_mobile_context",
    "linear_parts",
    "mobile_context_parts",
    "packed_class",
    "packed_kind",
    "unpack_with_torch",
]

_PREFIX = "__torch__.torch.classes."
LINEAR = "quantized.LinearPackedParamsBase"
SPARSE_LINEAR = "sparse.LinearPackedParamsBase"
CONV2D = "quantized.Conv2dPackedParamsBase"  # conv1d is packed as conv2d
CONV3D = "quantized.Conv3dPackedParamsBase"
EMBEDDING = "quantized.EmbeddingPackedParamsBase"
CELL = "rnn.CellParamsBase"
# Float weights that optimize_for_mobile packed for XNNPACK; a torch built for a desktop has no such classes.
_MOBILE_CONTEXTS = frozenset(
    f"{_PREFIX}xnnpack.{name}" for name in ("LinearOpContext", "Conv2dOpContext", "TransposeConv2dOpContext")
)
_KINDS = frozenset({LINEAR, SPARSE_LINEAR, CONV2D, CONV3D, EMBEDDING, CELL})


def packed_class(obj: object) -> str | None:
    """The qualified name of a script object's class; None for any other object."""
    return obj._type().qualified_name() if isinstance(obj, torch.ScriptObject) else None


def packed_kind(packed: object) -> str:
    """Which of this file's constants a packed object, or its class's qualified name, stands for; empty for others."""
    name = packed if isinstance(packed, str) else packed_class(packed) or ""
    kind = name.removeprefix(_PREFIX)
    return kind if kind in _KINDS else ""


def unpack_with_torch(obj: Any, where: str) -> tuple[Tensor, Tensor | None]:
    """``(weight, bias or None)`` as torch unpacks a linear, convolution or embedding.

    Raises:
        QdeqError: torch's engine refuses.

    """
    kind = packed_kind(obj)
    try:
        if kind == EMBEDDING:
            return torch.ops.quantized.embedding_bag_unpack(obj), None
        if kind == SPARSE_LINEAR:
            weight, bias, _ = torch.ops.sparse.qlinear_unpack(obj)
            return weight, bias
        weight, bias = obj.unpack()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        remedy = "Dequantize the model before it is packed for this engine, or load it under fbgemm, x86 or onednn."
        got = f"{kind}, which refused ({reason.rstrip('.')})"
        raise QdeqError(expected(where, "a packed weight that torch can unpack", got, remedy)) from error
    return weight, bias


def is_lost(obj: object, weight: Tensor) -> bool:
    """Whether ``weight``, as torch unpacked it from ``obj``, is uninitialized memory."""
    if packed_kind(obj) != CONV2D or not weight.is_quantized:
        return False
    return is_direct_weight(weight.shape, weight.stride(), scheme_of(weight), ConvGeometry.of_packed(obj))


def linear_parts(state: object) -> tuple[Any, Any] | None:
    """``(weight, bias or None)`` of a linear; a sparse one's state adds its block sizes."""
    if not isinstance(state, tuple | list) or len(state) not in (2, 4):
        return None
    return state[0], state[1]


def is_mobile_context(class_name: str) -> bool:
    """Whether a qualified name is that of a class which holds a float layer packed for XNNPACK."""
    return class_name in _MOBILE_CONTEXTS


def mobile_context_parts(state: object) -> tuple[Any, Any] | None:
    """``(weight, bias or None)`` of a layer packed for XNNPACK.

    A linear's state goes on with the least and the greatest output, a convolution's with stride, padding, dilation,
    groups and those two; a transposed one's has its output padding as well (``native/xnnpack/OpContext.h``).
    """
    return state[:2] if isinstance(state, tuple) and len(state) in (4, 8, 9) else None


def conv_parts(state: object) -> tuple[Any, Any, Any] | None:
    """``(weight, bias or None, config)`` of a convolution, by versions 1 to 3 of ``conv_serialization.h``.

    1: (weight, bias, stride, ...); 2: (``"2"``, [config, weight], [bias or None]); 3: (3, [numbers], [None, weight,
    bias]). ``config`` is version 2's tensor or version 3's list, for :func:`conv_geometry`, and None for version 1.
    """
    if isinstance(state, tuple) and len(state) >= 3 and isinstance(state[1], list) and isinstance(state[2], list):
        if state[0] == "2" and len(state[1]) >= 2:
            return state[1][1], state[2][0] if state[2] else None, state[1][0]
        if state[0] == 3 and len(state[2]) >= 3:
            return state[2][1], state[2][2], state[1]
    if isinstance(state, tuple) and len(state) >= 6:
        return state[0], state[1], None
    return None


def conv_geometry(numbers: Sequence[Any]) -> ConvGeometry | None:
    """The set-up of a convolution from its config.

    Args:
        numbers: (k, stride x k, padding x k, dilation x k, output padding x k, groups, transposed).

    """
    k = numbers[0] if numbers and isinstance(numbers[0], int) else 0
    if not 1 <= k <= 3 or len(numbers) != 4 * k + 3 or not all(isinstance(n, int) for n in numbers):
        return None
    stride, padding, dilation, output_padding = (tuple(numbers[1 + at * k : 1 + (at + 1) * k]) for at in range(4))
    return ConvGeometry(bool(numbers[-1]), stride, padding, dilation, numbers[-2], output_padding)


def embedding_weight(state: object) -> Any:
    """The weight of an embedding: ``(version, [weight], ...)``."""
    if not isinstance(state, tuple) or len(state) < 2 or not isinstance(state[1], list) or not state[1]:
        return None
    return state[1][0]


def cell_parts(state: object) -> tuple[Any, Any] | None:
    """``(ih, hh)``, the two packed linears of an RNN cell, quantized or float16; they hold the biases, too.

    Args:
        state: ``(kind, biases, doubles, integers, [ih, hh])``; a live cell's is ``cell.__getstate__()[0]``.

    """
    kind = state[0] if isinstance(state, tuple) and len(state) == 5 else None
    if kind not in ("quantized_dynamic", "quantized_fp16"):
        return None
    packed = state[4]  # type: ignore[index]  # kind is None for what is no tuple
    return (packed[0], packed[1]) if isinstance(packed, list) and len(packed) == 2 else None
