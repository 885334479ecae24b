"""What the rewriting of one model keeps: names, options, the float weights so far, the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from qdeq.onnx_graphs.package import onnx_library, shown
from qdeq.onnx_graphs.qparams import Qparams
from qdeq.onnx_graphs.stored import FLOATS, External, Stored
from qdeq.onnx_graphs.weights import FloatWeight, quantized_weight
from qdeq.report import Report

__all__ = ["Rewrite"]

# What onnxruntime.quantization puts behind the name of a float tensor for its integers.
_SUFFIXES = ("_quantized", "_DequantizeLinear_Output", "_DQ_Q4", "_DQ_Q8", "_Q4", "_Q8", "_Q2")


@dataclass(eq=False)
class Rewrite:
    """One model on its way to float.

    Attributes:
        where: the file, or how else the model is called in errors.
        mode: what becomes of the rounding of activations: ``drop``, ``clamp`` or ``fake_quant``.
        opset: version of ONNX's own operators.
        external: reads values that lie in other files.
        taken: every name of the model and of the result so far.
        weights: name -> float weight, in the order in which they were met.
        constants: small tensors that the result needs beside them.
        quantized: whether an operator on quantized values was met.
        wishes: name in the result -> the name that it takes if that is free in the end.
        gone: initializers of the source that the result does not have.
        report: the account.
        bounded: names in the result with an upper bound or None -> whether their values are known to stay above 0 and
            below it.
        numbers: values of those of :attr:`constants` that are numbers.

    """

    where: str
    mode: str
    opset: int
    external: External
    taken: set[str]
    weights: dict[str, FloatWeight] = field(default_factory=dict)
    constants: list[Any] = field(default_factory=list)
    quantized: bool = False
    wishes: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    numbers: dict[str, float] = field(default_factory=dict)
    bounded: dict[tuple[str, float | None], bool] = field(default_factory=dict)
    _made: dict[tuple[object, ...], str] = field(default_factory=dict)

    def place(self, node: Any) -> str:
        """A node, for the beginning of an error."""
        name = shown(node.name) if node.name else f"the one that gives {shown(next(iter(node.output), ''))}"
        return f"{self.where}: node {name} ({node.op_type[:60]})"

    def label(self, node: Any) -> str:
        """A node, for the report."""
        return str(node.name or next(iter(node.output), node.op_type))

    def new_name(self, wish: str) -> str:
        """A name that nothing has yet: ``wish`` without what a quantizer put behind it, or with a number.

        Where it is only taken by the integers that the value stands for, it becomes free if these go:
        :attr:`wishes` keeps that.
        """
        stem = wish
        for suffix in _SUFFIXES:
            stem = stem.removesuffix(suffix) or stem
        name, number = stem, 0
        while name in self.taken:
            number += 1
            name = f"{stem}_{number}"
        self.taken.add(name)
        if number:
            self.wishes[name] = stem
        return name

    def weight_of(self, ints: Stored, q: Qparams, dtype: torch.dtype, note: str = "") -> str:
        """The name of the float weight that integers and their scales make; the same one for the same two."""
        key = (ints.name, dtype, *q.key())
        if key not in self._made:
            self.add(key, quantized_weight(self.new_name(ints.name), ints, q, dtype, note))
        return self._made[key]

    def known(self, key: tuple[object, ...]) -> str | None:
        """The name under which :meth:`add` put a weight."""
        return self._made.get(key)

    def add(self, key: tuple[object, ...], weight: FloatWeight) -> str:
        """Take a weight into the result."""
        self.weights[weight.name] = weight
        self._made[key] = weight.name
        return weight.name

    def number(self, wish: str, value: float, dtype: torch.dtype) -> str:
        """A 0-d constant of the result; the same one for the same number."""
        key = (wish, value, dtype)
        if key not in self._made:
            onnx = onnx_library()
            code = next(code for code, float_dtype in FLOATS.items() if float_dtype is dtype)
            name = self.new_name(wish)
            self.constants.append(onnx.helper.make_tensor(name, code, [], [value]))
            self.numbers[name] = value
            self._made[key] = name
        return self._made[key]

    def constant(self, wish: str, array: Any) -> str:
        """A small tensor of the result, from a numpy array."""
        name = self.new_name(wish)
        self.wishes.pop(name, None)
        self.constants.append(onnx_library().numpy_helper.from_array(array, name))
        return name
