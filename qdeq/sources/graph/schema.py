"""Reads calls of torch's quantized operators by their schemas: arguments are bound by name, never by position."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Call", "operator_of", "read_call"]

# Names under which the operators take the scale and zero point of their output. elu has another ``scale`` beside it.
_QPARAMS = (("output_scale", "output_zero_point"), ("Y_scale_i", "Y_zero_point_i"), ("scale", "zero_point"))
_QUANTIZED = "quantized::"


@dataclass(frozen=True)
class Call:
    """A call of a quantized operator.

    Attributes:
        name: of the operator, without ``quantized::``.
        packed: arguments that are packed weights, in the schema's order.
        qparams: scale and zero point of the output; None where the operator takes none.
        arguments: all others by name, in the schema's order, the defaults filled in.

    """

    name: str
    packed: tuple[Any, ...]
    qparams: tuple[Any, Any] | None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> tuple[Any, ...]:
        """The other arguments, in the schema's order."""
        return tuple(self.arguments.values())


def operator_of(target: Any) -> str:
    """``namespace::name`` of the operator that a ``call_function`` node calls; empty for a function that is none."""
    if isinstance(target, str):
        return target
    if isinstance(target, torch._ops.OpOverload):
        target = target.overloadpacket
    return target._qualified_op_name if isinstance(target, torch._ops.OpOverloadPacket) else ""


def read_call(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """Read a call of an operator of the namespace ``quantized``; None where this torch has no such operator.

    Args:
        target: a packet, an overload, or ``"quantized::NAME"``.
        args: positional arguments.
        kwargs: arguments by name.

    """
    name = operator_of(target)
    for parameters in _overloads(name):
        bound = _bind(parameters, args, kwargs)
        if bound is not None:
            packed = tuple(bound.pop(own) for own, is_packed, _, _ in parameters if is_packed)
            qparams = next(((bound.pop(s), bound.pop(z)) for s, z in _QPARAMS if s in bound and z in bound), None)
            return Call(name.removeprefix(_QUANTIZED), packed, qparams, bound)
    return None


_Parameter = tuple[str, bool, bool, Any]


@functools.cache
def _overloads(name: str) -> tuple[tuple[_Parameter, ...], ...]:
    """Parameters of each overload: name, is it a packed weight, has it a default, the default."""
    try:
        schemas = torch._C._jit_get_schemas_for_operator(name)
    except RuntimeError:
        return ()
    return tuple(
        tuple((a.name, "PackedParamsBase" in str(a.type), a.has_default_value(), a.default_value) for a in s.arguments)
        for s in schemas
    )


def _bind(parameters: Sequence[_Parameter], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments by name; None for a call that does not fit."""
    names = [name for name, _, _, _ in parameters]
    if len(args) > len(names) or any(name not in names[len(args) :] for name in kwargs):
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    if any(name not in given and not has_default for name, _, has_default, _ in parameters):
        return None
    return {name: given.get(name, default) for name, _, _, default in parameters}
