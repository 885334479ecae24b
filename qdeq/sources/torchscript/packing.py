"""Packed weights as the code and the pickles of an archive make them: taken apart, not packed.

Sources: ``ATen/native/quantized/library.cpp`` (arguments of the ``prepack`` operators), ``native/RNN.cpp`` (cells).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qdeq.errors import QdeqError
from qdeq.files.torch_archive.packed_objects import packed_object
from qdeq.files.torch_archive.tensors import StoredTensor
from qdeq.files.untrusted import refuse, shown
from qdeq.sources.graph.program import Packed
from qdeq.sources.torchscript.code import OPEN
from qdeq.state_dicts import parts
from qdeq.weights.packed_state import CONV2D, CONV3D, EMBEDDING, packed_kind

__all__ = ["Weight", "pack", "packed_from_state"]

Weight = Callable[[object], StoredTensor | None]
"""The tensor that a value of the code is; None for None."""

_CELLS = {"quantized::make_quantized_cell_params_dynamic", "quantized::make_quantized_cell_params_fp16"}
_LINEAR = {"quantized::linear_prepack": "linear", "quantized::linear_prepack_fp16": "linear_fp16"}
_CONV = {f"quantized::conv{d}_prepack": False for d in ("", "1d", "2d", "3d")}
_CONV |= {f"quantized::conv_transpose{d}_prepack": True for d in ("1d", "2d", "3d")}
_EMBEDDING = "quantized::embedding_bag_prepack"


def pack(name: str, args: Sequence[Any], where: str, weight: Weight) -> Packed | None:
    """What an operator packs; None for an operator that packs nothing.

    Args:
        name: such as ``quantized::linear_prepack``.
        args: its arguments as the code gives them, all by position.
        where: for errors.
        weight: reads tensors among them.

    Raises:
        QdeqValueError: the arguments are not what the operator takes.

    """
    try:
        if name in _LINEAR:
            return _pair(_LINEAR[name], where, weight(args[0]), weight(args[1]))
        if name in _CONV:
            return _conv(_CONV[name], args, where, weight)
        if name == _EMBEDDING:
            return _pair("embedding", where, weight(args[0]), None)
        if name in _CELLS:
            return Packed("cell", parts=(_part(args[0]), _part(args[1])))
    except QdeqError:
        raise
    except (IndexError, TypeError, ValueError) as error:
        refuse(where, f"arguments of {name}", shown(str(error)), OPEN)
    return None


def _part(value: object) -> Packed:
    if not isinstance(value, Packed):
        raise TypeError("a cell without packed weights")
    return value


def _pair(kind: str, where: str, weight: StoredTensor | None, bias: StoredTensor | None) -> Packed:
    if weight is None:
        raise TypeError("no weight")
    return Packed(kind, weight.read(where), None if bias is None else bias.read(where))


def _conv(transpose: bool, args: Sequence[Any], where: str, weight: Weight) -> Packed:
    stored = weight(args[0])
    packed = _pair("conv", where, stored, weight(args[1]))
    sizes = [tuple(int(n) for n in size) for size in args[2 : 6 if transpose else 5]]
    if transpose:
        packed.stride, packed.padding, packed.output_padding, packed.dilation = sizes
    else:
        packed.stride, packed.padding, packed.dilation = sizes
        packed.output_padding = (0,) * len(packed.stride)
    packed.transpose, packed.groups = transpose, int(args[-1])
    return packed


def packed_from_state(where: str, class_name: str, state: Any, need: Callable[[object], StoredTensor]) -> Packed:
    """What a packed object in a pickle is.

    Args:
        where: for errors.
        class_name: its class, which begins with ``__torch__.torch.classes.``.
        state: its state as the pickle describes it.
        need: describes a tensor in it.

    Raises:
        QdeqValueError: the class is not known, or has another state.

    """
    found, geometry = packed_object(where, class_name, state, need)
    if isinstance(found, parts.Cell):
        cells = (_from_parts("linear", where, found.ih), _from_parts("linear", where, found.hh))
        return Packed("cell", parts=cells)
    if found is None:
        refuse(where, "a packed weight of a known class", shown(class_name), OPEN)
    kind = packed_kind(class_name)
    if kind not in (CONV2D, CONV3D):
        return _from_parts("embedding" if kind == EMBEDDING else "linear", where, found)
    if geometry is None:
        refuse(where, "a convolution that says its strides", "one that does not", OPEN)
    packed = _from_parts("conv", where, found)
    packed.stride, packed.padding, packed.dilation = geometry.stride, geometry.padding, geometry.dilation
    packed.output_padding, packed.groups, packed.transpose = (
        geometry.output_padding,
        geometry.groups,
        geometry.transposed,
    )
    return packed


def _from_parts(kind: str, where: str, found: parts.Packed) -> Packed:
    kind = "linear_fp16" if kind == "linear" and found.weight.qscheme is None else kind
    return _pair(kind, where, found.weight, found.bias)
