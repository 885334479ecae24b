"""What a name of the quantized graph stands for while the graph is rewritten; one that is not listed stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.stored import Stored

if TYPE_CHECKING:
    from qdeq.onnx_graphs.scope import Scope

__all__ = ["Accumulator", "Alias", "Constant", "DynamicScale", "Moved", "Rounded", "Value"]


@dataclass(frozen=True, eq=False)
class Alias:
    """The same value has another name in the result."""

    name: str


@dataclass(frozen=True, eq=False)
class Constant:
    """An initializer or the output of a Constant node: kept if anything in the result still reads it."""

    stored: Stored


@dataclass(frozen=True, eq=False)
class Moved:
    """Integer constants behind an operator that only moves values: floats or integers, as the reader wants them."""

    node: Any
    scope: Scope
    output: str


@dataclass(frozen=True, eq=False)
class Rounded:
    """Quantized integers of a value that the result has as floats under the name ``twin``."""

    twin: str
    q: Qparams


@dataclass(frozen=True, eq=False)
class DynamicScale:
    """The scale that DynamicQuantizeLinear computed, or its product with constants (``factor``)."""

    key: str
    factor: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Accumulator:
    """The int32 sums of ConvInteger or MatMulInteger, as far as they were multiplied by scales.

    Attributes:
        node: what made them.
        twin: float twin of its first input.
        key: of the dynamic scale that is still to come; empty once it was there.
        factor: product of the constant scales so far.

    """

    node: Any
    scope: Scope
    twin: str
    key: str
    factor: Tensor | None = None


Value = Alias | Constant | Moved | Rounded | DynamicScale | Accumulator
