"""Packed parameters as a file describes them, taken apart into their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qdeq.files.torch_archive.pickled import Call, Instance
from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.untrusted import refuse, shown
from qdeq.state_dicts.parts import Cell, Packed
from qdeq.weights import packed_state
from qdeq.weights.direct_conv import ConvGeometry

__all__ = ["Need", "conv_module_geometry", "linear_pair", "packed_object", "script_state"]

Need = Callable[[object], StoredTensor]
"""Describes the tensor that a rebuild call stands for; refuses anything else."""

_MAX_CONFIG = 64  # numbers that describe a packed convolution


def linear_pair(where: str, state: Any, need: Need) -> Packed:
    """``(weight, bias)`` of a linear; a sparse one adds its block sizes."""
    parts = packed_state.linear_parts(state)
    if parts is None:
        refuse(where, "a weight and a bias", shown(type(state).__name__))
    return Packed(need(parts[0]), None if parts[1] is None else need(parts[1]))


def packed_object(
    where: str, class_name: str, state: Any, need: Need
) -> tuple[Packed | Cell | None, ConvGeometry | None]:
    """Read the state of a C++ object.

    Args:
        where: file and key, for errors.
        class_name: its qualified name, which begins with ``__torch__.torch.classes.``.
        state: what its ``__getstate__`` gave.
        need: gives its tensors.

    Returns:
        The tensors, or None if the class is not known; and how a convolution was set up, where the state says it.

    Raises:
        QdeqValueError: a known class with another state than it has.

    """
    kind = packed_state.packed_kind(class_name)
    if kind in (packed_state.LINEAR, packed_state.SPARSE_LINEAR):
        return linear_pair(where, state, need), None
    if kind in (packed_state.CONV2D, packed_state.CONV3D):
        return _conv(where, state, need)
    if kind == packed_state.EMBEDDING:
        weight = packed_state.embedding_weight(state)
        if weight is None:
            refuse(where, "packed parameters of an embedding", "something else")
        return Packed(need(weight), None), None
    if kind == packed_state.CELL:
        return _cell(where, state, need), None
    if packed_state.is_mobile_context(class_name):
        parts = packed_state.mobile_context_parts(state)
        if parts is None:
            refuse(where, "a weight and a bias packed for mobile", shown(type(state).__name__))
        return Packed(need(parts[0]), None if parts[1] is None else need(parts[1])), None
    return None, None


def _conv(where: str, state: Any, need: Need) -> tuple[Packed, ConvGeometry | None]:
    parts = packed_state.conv_parts(state)
    if parts is None or (parts[2] is None and not isinstance(parts[0], Call)):
        refuse(where, "convolution parameters of version 1, 2 or 3", "another layout")
    weight, bias, config = parts
    if config is None:
        config = _first_config(where, state, need)
    elif not isinstance(config, list):
        config = _numbers(where, need(config))
    return linear_pair(where, (weight, bias), need), packed_state.conv_geometry(config or [])


def _first_config(where: str, state: tuple[Any, ...], need: Need) -> list[Any]:
    """The numbers of version 1, which holds a tensor for each, as version 3 lists them."""
    stride, padding, dilation = sizes = state[2:5]
    listed = all(isinstance(size, list) and len(size) == len(stride) <= _MAX_CONFIG for size in sizes)
    if not listed or not isinstance(state[5], Call):
        return []
    zeros = [0] * len(stride)
    numbers = [n for item in (*stride, *padding, *dilation, state[5]) for n in _numbers(where, need(item))]
    return [len(stride), *numbers[:-1], *zeros, numbers[-1], 0] if len(numbers) == 3 * len(stride) + 1 else []


def _numbers(where: str, tensor: StoredTensor) -> list[Any]:
    values = tensor.read(where) if tensor.numel <= _MAX_CONFIG else None
    return values.reshape(-1).tolist() if isinstance(values, Tensor) else []


def _cell(where: str, state: Any, need: Need) -> Cell:
    packed = packed_state.cell_parts(state)
    if packed is None:
        kind = state[0] if isinstance(state, tuple) and len(state) == 5 else None
        refuse(where, "a quantized_dynamic or quantized_fp16 cell", shown(kind))
    ih, hh = (linear_pair(where, script_state(item), need) for item in packed)
    return Cell(ih, hh)


def script_state(item: object) -> Any:
    """The state of a C++ object inside another state: a pickle wraps it with its class's name."""
    state = item.state if isinstance(item, Instance) else None
    if isinstance(item, Instance) and item.cls.name == "ScriptObject" and isinstance(state, tuple) and state:
        return state[0]
    return state


def conv_module_geometry(state: tuple[Any, ...]) -> ConvGeometry | None:
    """How a quantized convolution was set up, by the state tuple of its module; None if that does not say."""
    (stride, padding, dilation, transposed, output_padding, groups) = state[3:9]
    sizes = (stride, padding, dilation, output_padding)
    if all(isinstance(size, tuple) and all(isinstance(n, int) for n in size) for size in sizes):
        return ConvGeometry(transposed is True, stride, padding, dilation, groups, output_padding)
    return None
