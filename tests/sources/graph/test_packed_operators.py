"""Torch's quantized operators with packed weights, one a graph: the layer that each becomes, and how it rounds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq import QdeqError, dequantize_model
from qdeq.sources.graph.table import FUNCTIONS, PACKED
from tests.helpers.graphs import hand_built, same_bits, small
from tests.sources.graph.test_operators import CASES as FUNCTION_CASES
from tools.graph_agreement import node_agreement
from tools.models import engine

Q = torch.ops.quantized
OUT = (0.0437, 61)


@dataclass
class Case:
    """One call of an operator on a packed weight.

    Attributes:
        name: of the operator.
        weight: float values that are quantized and packed.
        pack: packs the quantized weight and a bias.
        shape: of the input.
        float_function: of input, float weight and bias.
        more: arguments behind the packed weight.
        kind: class of the float layer.
        rounds: the output is rounded to a scale.
        engine: that runs it.

    """

    name: str
    weight: Tensor
    pack: Callable[[Tensor, Tensor], Any]
    shape: tuple[int, ...]
    float_function: Callable[[Tensor, Tensor, Tensor], Tensor]
    kind: type[nn.Module]
    more: tuple[Any, ...] = OUT
    rounds: bool = True
    engine: str = "fbgemm"
    added: bool = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def quantized(self) -> Tensor:
        if self.name.endswith("fp16"):
            return self.weight
        if "transpose" in self.name:
            return torch.quantize_per_tensor(self.weight, 0.013, 0, torch.qint8)
        scales = 0.005 + 0.011 * torch.rand(len(self.weight), generator=torch.Generator().manual_seed(1))
        return torch.quantize_per_channel(
            self.weight, scales, torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8
        )

    @property
    def bias(self) -> Tensor:
        channels = len(self.weight) if "transpose" not in self.name else self.weight.shape[1]
        return torch.linspace(-1, 1, channels)

    def graph(self):
        operator = getattr(Q, self.name)
        dynamic = "dynamic" in self.name

        def call(graph, x):
            given = graph.call_method("dequantize", (x,)) if dynamic else x
            inputs = (given, x) if self.added else (given,)
            return graph.call_function(operator, (*inputs, graph.get_attr("packed"), *self.more), self.kwargs)

        with engine(self.engine):
            return hand_built(call, packed=self.pack(self.quantized, self.bias))


def _weight(*shape: int) -> Tensor:
    """No two neighbours add up to more than 16 bits hold: the CPU may add them so."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(*shape, generator=generator) * 0.4


def _linear(name, function=F.linear, **more):
    return Case(name, _weight(5, 8), Q.linear_prepack, (6, 8), function, nn.Linear, **more)


def _conv(size, name, function, transposed=False, **more):
    geometry = [1] * size if transposed else [2] * size
    pads, ones = [1] * size, [1] * size
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{size}d")
    if transposed:
        prepack = getattr(Q, f"conv_transpose{size}d_prepack")
        pack = lambda w, b: prepack(w, b, geometry, pads, [0] * size, ones, 1)  # noqa: E731
        float_function = functools.partial(function, stride=geometry, padding=pads)
    else:
        prepack = getattr(Q, f"conv{size}d_prepack")
        pack = lambda w, b: prepack(w, b, geometry, pads, ones, 2)  # noqa: E731
        float_function = functools.partial(function, stride=geometry, padding=pads, groups=2)
    weight = _weight(8, 6 if transposed else 4, *[3] * size)
    return Case(name, weight, pack, (2, 8, *[7] * size), float_function, kind, **more)


def _relu(function):
    return lambda *args, **kwargs: F.relu(function(*args, **kwargs))


def _plus_input(function):
    return lambda x, w, b: function(x, w, b, padding=1) + x


def _cases():
    dynamic = {"more": (), "rounds": False}
    cases = [
        _linear("linear"),
        _linear("linear_relu", _relu(F.linear)),
        _linear("linear_leaky_relu", lambda *a: F.leaky_relu(F.linear(*a), 0.2), more=(*OUT, 0.2), engine="onednn"),
        _linear("linear_tanh", lambda *a: torch.tanh(F.linear(*a)), more=(2 / 256, 128), engine="onednn"),
        _linear("linear_dynamic", **dynamic),
        _linear("linear_relu_dynamic", _relu(F.linear), **dynamic),
    ]
    for name, function in (("linear_dynamic_fp16", F.linear), ("linear_relu_dynamic_fp16", _relu(F.linear))):
        cases.append(_linear(name, function, **dynamic))
        cases[-1].pack = Q.linear_prepack_fp16
    for size in (1, 2, 3):
        function = getattr(F, f"conv{size}d")
        cases.append(_conv(size, f"conv{size}d", function))
        cases.append(_conv(size, f"conv{size}d_relu", _relu(function)))
        cases.append(_conv(size, f"conv{size}d_dynamic", function, **dynamic))
        function = getattr(F, f"conv_transpose{size}d")
        cases.append(_conv(size, f"conv_transpose{size}d", function, True))
        cases.append(_conv(size, f"conv_transpose{size}d_dynamic", function, True, **dynamic))
    pack = lambda w, b: Q.conv2d_prepack(w, b, [1, 1], [1, 1], [1, 1], 1)  # noqa: E731
    for name, function in (
        ("conv2d_add", _plus_input(F.conv2d)),
        ("conv2d_add_relu", _relu(_plus_input(F.conv2d))),
    ):
        shape, weight = (2, 8, 6, 6), _weight(8, 8, 3, 3)
        cases.append(Case(name, weight, pack, shape, function, nn.Conv2d, engine="onednn", added=True))
    return {case.name: case for case in cases}


CASES = _cases()
EMBEDDINGS = {"embedding_byte", "embedding_4bit", "embedding_bag_byte", "embedding_bag_4bit"}
# Operators that no front end leaves in a graph, by what they are for.
NOT_IN_GRAPHS = {
    "int4mm_packed_weight_cpu", "linear_dynamic_fp16_unpacked_weight", "make_quantized_cell_params",
    "make_quantized_cell_params_dynamic", "linear_with_input_q_dq_qweight_dq_output_fp32",
    "linear_with_input_q_dq_qweight_dq_relu_output_fp32",
    "quantized_gru_cell_dynamic", "quantized_lstm_cell_dynamic",
    "quantized_rnn_relu_cell_dynamic", "quantized_rnn_tanh_cell_dynamic",
}  # fmt: skip
PACKING = ("_prepack", "_unpack", "_out", "_legacy", "_rowwise_offsets", "_min_max", "_fp16", "_sizes", "_2bit_unpack")
GEOMETRY = ("_stride", "_padding", "_dilation", "_groups", "_transpose")


def test_every_operator_of_torch_has_a_case():
    """A torch with an operator more fails here, until the table has it."""
    schemas = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("quantized::")}
    names = {name.removeprefix("quantized::") for name in schemas}
    assert len(names) > 100
    runs = {name for name in names if not name.endswith((*PACKING, *GEOMETRY))} | set(PACKED)
    tried = {case.operator._qualified_op_name.removeprefix("quantized::") for case in FUNCTION_CASES.values()}
    tried |= CASES.keys() | EMBEDDINGS
    assert runs - tried - NOT_IN_GRAPHS == set()
    assert set(PACKED) | set(FUNCTIONS) <= tried


@pytest.mark.parametrize("name", CASES)
def test_a_packed_operator_is_its_layer(name):
    case = CASES[name]
    torch.manual_seed(3)
    x, int8 = small(*case.shape), case.graph()
    rebuilt = dequantize_model(int8)
    layer = rebuilt.get_submodule(name)
    assert type(layer) is case.kind
    weight = case.weight.half().float() if name.endswith("fp16") else case.quantized.dequantize()
    assert same_bits(layer.weight, weight)
    assert same_bits(layer.bias, case.bias)
    assert torch.equal(rebuilt(x), case.float_function(x, weight, case.bias))
    assert all(parameter.requires_grad for parameter in rebuilt.parameters())


ONEDNN_TRANSPOSE = "onednn's own forward of a transposed convolution is wrong"


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rounds])
def test_a_packed_operator_rounds_as_torch_rounds_it(name):
    case = CASES[name]
    torch.manual_seed(3)
    x, int8 = small(*case.shape), case.graph()
    rebuilt, report = dequantize_model(int8, activations="fake_quant", return_report=True)
    assert not report.uncovered
    with engine(case.engine):
        found = node_agreement(int8, rebuilt, x)[name]
    assert found.share >= 0.99, found
    assert found.max_steps < 1.01, found


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.rounds])
def test_a_dynamic_operator_is_named_as_not_imitated(name):
    case = CASES[name]
    rebuilt, report = dequantize_model(case.graph(), activations="fake_quant", return_report=True)
    assert [(item.path, item.operation) for item in report.uncovered] == [(name, f"quantized::{name}")]
    x = small(*case.shape)
    exact = case.float_function(x, rebuilt.get_submodule(name).weight, case.bias)
    assert torch.equal(rebuilt(x), exact)


def _table(bits):
    dtype = torch.quint4x2 if bits == 4 else torch.quint8
    scale, zero_point = torch.rand(12) * 0.1 + 0.01, torch.rand(12) * 8
    weight = torch.quantize_per_channel(torch.randn(12, 16), scale, zero_point, 0, dtype)
    return Q.embedding_bag_prepack(weight), weight.dequantize()


def _looked_up(operator, packed, **kwargs):
    graph = torch.fx.Graph()
    names = ("indices", "offsets") if "bag" in str(operator) else ("indices",)
    given = [graph.placeholder(name) for name in names]
    graph.output(graph.call_function(operator, (graph.get_attr("table"), *given), kwargs))
    return torch.fx.GraphModule({"table": packed}, graph)


@pytest.mark.parametrize(("size", "bits"), [("byte", 8), ("4bit", 4)])
def test_embeddings(size, bits):
    torch.manual_seed(11)
    packed, weight = _table(bits)
    indices, offsets = torch.randint(0, 12, (9,)), torch.tensor([0, 4, 9])
    alone = dequantize_model(_looked_up(getattr(Q, f"embedding_{size}"), packed))
    assert same_bits(alone.get_submodule(f"embedding_{size}").weight, weight)
    assert torch.equal(alone(indices), weight[indices])
    bag = getattr(Q, f"embedding_bag_{size}")
    int8 = _looked_up(bag, packed, mode=0, include_last_offset=True)
    rebuilt = dequantize_model(int8)
    assert type(rebuilt.get_submodule(f"embedding_bag_{size}")) is nn.EmbeddingBag
    half_scales = 2**-10 * float(weight.abs().sum(0).max())  # the kernel for 4 bits has them in float16
    torch.testing.assert_close(rebuilt(indices, offsets), int8(indices, offsets), rtol=0, atol=half_scales)
    with pytest.raises(QdeqError, match=r"embedding_bag_.*pruned"):
        dequantize_model(_looked_up(bag, packed, pruned_weights=True))


def test_one_packed_weight_called_twice_is_one_layer():
    case = CASES["linear"]

    def call(graph, x):
        packed = graph.get_attr("packed")
        both = [graph.call_function(op, (x, packed, *OUT)) for op in (Q.linear, Q.linear_relu)]
        return graph.call_function(Q.add, (*both, *OUT))

    rebuilt = dequantize_model(hand_built(call, packed=case.pack(case.quantized, case.bias)))
    assert list(rebuilt.state_dict()) == ["linear.weight", "linear.bias"]
    x = small(*case.shape)
    y = F.linear(x, case.quantized.dequantize(), case.bias)
    assert torch.equal(rebuilt(x), y + F.relu(y))


def test_a_packed_weight_that_torch_lost_is_refused_unless_it_may_be_recovered():
    with engine("fbgemm"):
        weight = torch.quantize_per_tensor(torch.randn(8, 16, 2, 2), 0.02, 0, torch.qint8)
        packed = Q.conv_transpose2d_prepack(weight, None, [2, 2], [0, 0], [0, 0], [1, 1], 1)
    int8 = hand_built(
        lambda graph, x: graph.call_function(Q.conv_transpose2d, (x, graph.get_attr("packed"), *OUT)), packed=packed
    )
    with pytest.raises(QdeqError, match="node conv_transpose2d: .*recover_direct_conv"):
        dequantize_model(int8)
    rebuilt = dequantize_model(int8, recover_direct_conv=True)
    assert same_bits(rebuilt.get_submodule("conv_transpose2d").weight, weight.dequantize())
