"""A graph that is being rewritten, in the graphs around it: what its names stand for, and the nodes of the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected
from qdeq.onnx_graphs.folding import fold
from qdeq.onnx_graphs.package import onnx_library, shown
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.rewrite import Rewrite
from qdeq.onnx_graphs.stored import FLOATS, INTEGERS, TYPES, Stored

__all__ = ["Accumulator", "Alias", "Constant", "DynamicScale", "Moved", "Rounded", "Scope", "Value"]


_MOST_FOLDED = 8  # nodes behind one another that compute a scale


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
    """Integer constants behind ``depth`` operators that only move values: floats or integers, as the reader asks."""

    node: Any
    scope: Scope
    output: str
    depth: int = 1


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
"""What a name of the quantized graph stands for while it is rewritten; one that is not listed stands for itself."""


class Scope:
    """One graph on its way to float.

    Attributes:
        rewrite: what holds for the whole model.
        parent: the graph around this one; None for the model's own.
        values: what names of this graph stand for; one that is missing stands for itself.
        nodes: of the result, in order.
        producers: name in the result -> the node that gives it.

    """

    def __init__(self, rewrite: Rewrite, parent: Scope | None) -> None:
        self.rewrite = rewrite
        self.parent = parent
        self.values: dict[str, Value] = {}
        self.nodes: list[Any] = []
        self.producers: dict[str, Any] = {}
        self._emitted: dict[tuple[object, ...], str] = {}

    def value(self, name: str) -> Value | None:
        """What a name stands for, here or in a graph around this one; None for itself."""
        if name in self.values or self.parent is None:
            return self.values.get(name)
        return self.parent.value(name)

    def producer(self, name: str) -> Any:
        """The node of the result that gives a name; None for inputs and initializers."""
        return self.producers.get(name) or (self.parent.producer(name) if self.parent else None)

    def error(self, node: Any, what: str, got: str, remedy: str) -> QdeqValueError:
        """An error that names the node."""
        return QdeqValueError(expected(self.rewrite.place(node), what, got, remedy))

    def emit(self, op: str, inputs: Sequence[str], output: str, name: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output, and return that."""
        made = onnx_library().helper.make_node(op, list(inputs), [output], name=name, domain=domain, **attributes)
        return self.put(made)

    def put(self, node: Any) -> str:
        """Add a node, and return its first output."""
        self.nodes.append(node)
        for output in node.output:
            if output:
                self.producers[output] = node
        return str(node.output[0]) if node.output else ""

    def copy(self, node: Any, inputs: Sequence[str], outputs: Sequence[str]) -> str:
        """Add a copy of a node that reads and gives other names."""
        made = onnx_library().NodeProto()
        made.CopyFrom(node)
        del made.input[:], made.output[:]
        made.input.extend(inputs)
        made.output.extend(outputs)
        return self.put(made)

    def plain(self, node: Any, name: str) -> str:
        """The name in the result of a value that an operator reads as it is.

        Raises:
            QdeqValueError: it is made of quantized integers, and the operator is not known to take such.

        """
        value = self.value(name) if name else None
        if value is None or isinstance(value, Constant):
            return name
        if isinstance(value, Alias):
            return value.name
        if isinstance(value, Moved):
            return value.scope.plain_moved(value)
        what = f"an operator that qdeq knows on quantized values, to read {shown(name)}"
        operator = f"{node.op_type[:60]} of {node.domain[:60] or 'ai.onnx'}"
        raise self.error(node, what, operator, "Quantize the model without this operator, or report it.")

    def plain_moved(self, moved: Moved) -> str:
        """The integers themselves: the operator stays as it is."""
        key = (moved.output,)
        if key not in self._emitted:
            self.copy(moved.node, [self.plain(moved.node, name) for name in moved.node.input], list(moved.node.output))
            self._emitted |= {(output,): output for output in moved.node.output}
        return self._emitted[key]

    def once(self, key: tuple[object, ...]) -> str | None:
        """What :meth:`remember` was told under a key."""
        return self._emitted.get(key)

    def remember(self, key: tuple[object, ...], name: str) -> str:
        """Keep a name, so that nodes are not added twice."""
        self._emitted[key] = name
        return name

    def constant(self, node: Any, name: str, what: str) -> Stored:
        """A constant that an operator needs to be one.

        Raises:
            QdeqValueError: it is computed when the model runs.

        """
        found = self._folded(name, 0) if name else None
        if found is not None:
            return found
        remedy = "Fold the model's constants first, or quantize it anew."
        raise self.error(node, f"a constant {what}", f"{shown(name)}, which is computed", remedy)

    def _folded(self, name: str, depth: int) -> Stored | None:
        """The constant of a name, also where a few nodes compute it of others."""
        value = self.value(name)
        if isinstance(value, Constant):
            return value.stored
        node = self.producer(name)
        if value is not None or node is None or depth == _MOST_FOLDED:
            return None
        return fold(node, name, lambda inner: self._folded(inner, depth + 1))

    def numbers(self, node: Any, name: str, what: str) -> torch.Tensor:
        """The values of a small constant as they are stored, sub-byte integers one by one."""
        found = self.constant(node, name, what)
        return found.integers() if TYPES[found.code].bits < 8 else found.read()

    def qparams(
        self, node: Any, scale: str, zero_point: str, axis: int | None = None, block: int = 0, code: int | None = None
    ) -> Qparams:
        """Constant scale and zero point of an operator.

        Args:
            node: the operator.
            scale: name of the scale.
            zero_point: name of the zero point; empty for none.
            axis: of the channels or blocks, if there is more than one scale.
            block: values per block.
            code: element type of the integers, where no zero point says it.

        Raises:
            QdeqValueError: one that is not constant, of a type that is none, or of another shape than the other.

        """
        found = self.constant(node, scale, "scale")
        remedy = "The model is damaged: get a fresh copy."
        if found.code not in FLOATS:
            raise self.error(node, f"a floating point scale {shown(scale)}", TYPES[found.code].name, remedy)
        values = found.read()
        if values.numel() == 1:
            values, axis, block = values.reshape(()), None, 0
        zeros = torch.zeros((), dtype=torch.int64).expand(values.shape)
        if zero_point:
            zeros, code = self._zero_point(node, zero_point, narrow=block > 0)
            if zeros.numel() == 1:
                zeros = zeros.reshape(()).expand(values.shape)
            if zeros.shape != values.shape:
                what = f"as many zero points {shown(zero_point)} as scales, {tuple(values.shape)}"
                raise self.error(node, what, str(tuple(zeros.shape)), remedy)
        return Qparams(values, zeros, code, axis, block, (scale, zero_point))

    def _zero_point(self, node: Any, name: str, narrow: bool) -> tuple[torch.Tensor, int]:
        stored = self.constant(node, name, "zero point")
        kind = TYPES[stored.code].name
        if stored.code in INTEGERS:
            if narrow and TYPES[stored.code].bits >= 8:
                return stored.read(), stored.code
            return stored.integers() if narrow else stored.integers().long(), stored.code
        values = stored.read().float()
        if not kind.startswith("float8") or bool(values.count_nonzero()):
            what = f"a zero point {shown(name)} of an integer type, or zeros of float8"
            raise self.error(node, what, kind, "This type is not known.")
        return values.long(), stored.code
