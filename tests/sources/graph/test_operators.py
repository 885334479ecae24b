"""Torch's quantized operators without packed weights, one a graph: on floats, and rounded as the int8 one rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qdeq import dequantize_model
from tests.helpers.graphs import hand_built, small
from tools.graph_agreement import node_agreement

Q = torch.ops.quantized
X, Y = "the input", "the second input"
# No multiple of the input's: else every eighth value lies halfway between two grid points.
OUT = (0.0437, 61)
NAMED = {"output_scale": OUT[0], "output_zero_point": OUT[1]}
IMAGE = (4, 8, 6, 6)


@dataclass
class Case:
    """One call of an operator, and the float function that it stands for."""

    operator: Any
    args: tuple[Any, ...]
    expected: Callable[..., Tensor]
    kwargs: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = IMAGE
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return 2 if Y in self.args or any(Y in arg for arg in self.args if isinstance(arg, list)) else 1

    def graph(self):
        def call(graph, *given):
            values = dict(zip((X, Y), given, strict=False))
            values |= {f"self.{name}": graph.get_attr(name) for name in self.attributes}

            def put(arg):
                if isinstance(arg, list):
                    return [put(item) for item in arg]
                return values.get(arg, arg) if isinstance(arg, str) else arg

            args = tuple(put(arg) for arg in self.args)
            return graph.call_function(self.operator, args, {name: put(arg) for name, arg in self.kwargs.items()})

        return hand_built(call, self.inputs, **self.attributes)

    def data(self) -> list[Tensor]:
        torch.manual_seed(3)
        return [small(*self.shape) for _ in range(self.inputs)]


torch.manual_seed(5)
STATE = {"w": torch.rand(8) + 0.5, "b": torch.randn(8), "mean": torch.randn(8), "var": torch.rand(8) + 0.5}
SLOPES = torch.quantize_per_tensor(torch.rand(8), 0.004, 3, torch.quint8)


def _norm(x, dims=None):
    return F.batch_norm(x, STATE["mean"], STATE["var"], STATE["w"], STATE["b"], False, 0.0, 1e-4)


def _batch_norm(operator, shape=IMAGE, relu=False):
    args = (X, "self.w", "self.b", "self.mean", "self.var", 1e-4, *OUT)
    expected = (lambda x: F.relu(_norm(x))) if relu else _norm
    return Case(operator, args, expected, shape=shape, attributes=STATE)


POOL = ([2, 2], [2, 2], [0, 0], [1, 1], False)
CASES = {
    "add": Case(Q.add, (X, Y), torch.add, {"scale": OUT[0], "zero_point": OUT[1]}),
    "add with a number": Case(Q.add, (X, 0.813), lambda x: x + 0.813),
    "add to a number": Case(Q.add, (0.813, X), lambda x: x + 0.813),
    "add_relu": Case(Q.add_relu, (X, Y, *OUT), lambda x, y: F.relu(x + y)),
    "add_relu with a number": Case(Q.add_relu, (X, 0.3), lambda x: F.relu(x + 0.3)),
    "add_scalar": Case(Q.add_scalar, (X, -1.37), lambda x: x - 1.37),
    "add_scalar_relu": Case(Q.add_scalar_relu, (X, -1.37), lambda x: F.relu(x - 1.37)),
    "mul": Case(Q.mul, (X, Y, *OUT), torch.mul),
    "mul with a number": Case(Q.mul, (X, -0.7), lambda x: x * -0.7),
    "mul_relu": Case(Q.mul_relu, (X, Y, *OUT), lambda x, y: F.relu(x * y)),
    "mul_scalar": Case(Q.mul_scalar, (X, 0.37), lambda x: x * 0.37),
    "mul_scalar_relu": Case(Q.mul_scalar_relu, (X, 0.37), lambda x: F.relu(x * 0.37)),
    "matmul": Case(Q.matmul, (X, Y, 0.6, 70), torch.matmul),
    "cat": Case(Q.cat, ([X, Y], 1, *OUT), lambda x, y: torch.cat([x, y], 1)),
    "cat without a scale": Case(Q.cat, ([X, Y], 1, None, None), lambda x, y: torch.cat([x, y], 1)),
    "cat_relu": Case(Q.cat_relu, ([X, Y], 1, *OUT), lambda x, y: F.relu(torch.cat([x, y], 1))),
    "batch_norm": _batch_norm(Q.batch_norm),
    "batch_norm_relu": _batch_norm(Q.batch_norm_relu, relu=True),
    "batch_norm1d": _batch_norm(Q.batch_norm1d, (4, 8, 6)),
    "batch_norm1d_relu": _batch_norm(Q.batch_norm1d_relu, (4, 8, 6), relu=True),
    "batch_norm2d": _batch_norm(Q.batch_norm2d),
    "batch_norm2d_relu": _batch_norm(Q.batch_norm2d_relu, relu=True),
    "batch_norm3d": _batch_norm(Q.batch_norm3d, (2, 8, 3, 4, 4)),
    "batch_norm3d_relu": _batch_norm(Q.batch_norm3d_relu, (2, 8, 3, 4, 4), relu=True),
    "layer_norm": Case(Q.layer_norm, (X, [6]), lambda x: F.layer_norm(x, [6], eps=1e-5),
                       {"weight": None, "bias": None, "eps": 1e-5, **NAMED}),
    "group_norm": Case(Q.group_norm, (X, 2, "self.w", "self.b", 1e-5, *OUT),
                       lambda x: F.group_norm(x, 2, STATE["w"], STATE["b"], 1e-5),
                       attributes={name: STATE[name] for name in "wb"}),
    "instance_norm": Case(Q.instance_norm, (X,), lambda x: F.instance_norm(x, weight=STATE["w"], bias=STATE["b"]),
                          {"weight": "self.w", "bias": "self.b", "eps": 1e-5, **NAMED},
                          attributes={name: STATE[name] for name in "wb"}),
    "hardswish": Case(Q.hardswish, (X, *OUT), F.hardswish),
    "elu": Case(Q.elu, (X, *OUT), lambda x: F.elu(x, 0.7), {"alpha": 0.7}),
    "elu with a scale": Case(Q.elu, (X, *OUT, 0.7, 1.3, 0.5), lambda x: torch.ops.aten.elu(x, 0.7, 1.3, 0.5)),
    "celu": Case(Q.celu, (X, *OUT, 0.7), lambda x: F.celu(x, 0.7)),
    "leaky_relu": Case(Q.leaky_relu, (X, 0.2, False, *OUT), lambda x: F.leaky_relu(x, 0.2)),
    "sigmoid": Case(Q.sigmoid, (X, 1 / 256, 0), torch.sigmoid),
    "softmax": Case(Q.softmax, (X, 1, 1 / 256, 0), lambda x: F.softmax(x, 1)),
    "dropout": Case(Q.dropout, (X, *OUT), lambda x: x, {"p": 0.3, "training": False}),
    "prelu": Case(Q.prelu, (X, "self.slopes", *OUT), lambda x: F.prelu(x, SLOPES.dequantize()),
                  attributes={"slopes": SLOPES}),
    "relu6": Case(Q.relu6, (X, False), F.relu6),
    "clamp": Case(Q.clamp, (X, -0.5, 1.05), lambda x: x.clamp(-0.5, 1.05)),
    "threshold": Case(Q.threshold, (X, 0.5, 0.1), lambda x: F.threshold(x, 0.5, 0.1)),
    "max_pool1d": Case(Q.max_pool1d, (X, [2], [2], [0], [1], False), lambda x: F.max_pool1d(x, 2), shape=(4, 8, 6)),
    "max_pool2d": Case(Q.max_pool2d, (X, *POOL), lambda x: F.max_pool2d(x, 2)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_operator_is_its_float_function(name):
    case = CASES[name]
    x = case.data()
    assert torch.equal(dequantize_model(case.graph())(*x), case.expected(*x))


@pytest.mark.parametrize("name", CASES)
def test_an_operator_rounds_as_torch_rounds_it(name):
    case = CASES[name]
    int8, x = case.graph(), case.data()
    rebuilt, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    (worst,) = [a for n, a in node_agreement(int8, rebuilt, *x).items() if "quantize_per" not in n] or [None]
    if worst is None:  # it keeps its input's values
        assert torch.equal(rebuilt(*x), int8(*x))
        return
    assert worst.share >= 0.99, worst
    assert worst.max_steps < 1.01, worst
