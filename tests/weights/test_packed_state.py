"""Packed parameters taken apart: the states that live objects give, and what is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdeq.weights.direct_conv import ConvGeometry
from qdeq.weights.packed import engine_of
from qdeq.weights.packed_state import (
    CELL,
    CONV2D,
    CONV3D,
    EMBEDDING,
    LINEAR,
    SPARSE_LINEAR,
    cell_parts,
    conv_geometry,
    conv_parts,
    embedding_weight,
    linear_parts,
    packed_class,
    packed_kind,
    unpack_with_torch,
)
from tests.helpers.models import assert_same_bits, tq
from tests.weights.packed import cases


def state_of(packed):
    return packed.__getstate__()[0]


def conv_of(transposed=False):
    prepack = torch.ops.quantized.conv_transpose2d_prepack if transposed else torch.ops.quantized.conv2d_prepack
    weight = torch.quantize_per_tensor(torch.randn(4, 2, 3, 5), 0.1, 0, torch.qint8)
    output_padding = [[0, 0]] if transposed else []
    return prepack(weight, torch.arange(2.0 if transposed else 4.0), [2, 1], [0, 3], *output_padding, [1, 1], 1)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution(transposed):
    packed = conv_of(transposed)
    assert packed_kind(packed) == packed_kind(packed_class(packed)) == CONV2D
    weight, bias, config = conv_parts(state_of(packed))
    expected, expected_bias = unpack_with_torch(packed, "conv")
    assert_same_bits(weight.dequantize(), expected.dequantize())
    assert_same_bits(bias, expected_bias)
    numbers = config if isinstance(config, list) else config.tolist()
    assert conv_geometry([int(n) for n in numbers]) == ConvGeometry.of_packed(packed)
    assert ConvGeometry.of_packed(packed).transposed == transposed


def test_a_linear():
    weight = torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(weight, torch.arange(4.0))
    assert packed_kind(packed) == LINEAR
    parts = linear_parts(state_of(packed))
    assert_same_bits(parts[0].dequantize(), weight.dequantize())
    assert_same_bits(parts[1], torch.arange(4.0))


def test_a_sparse_linears_state_adds_its_block_sizes():
    assert linear_parts(("weight", None, 1, 4)) == ("weight", None)
    assert packed_kind(f"__torch__.torch.classes.{SPARSE_LINEAR}") == SPARSE_LINEAR


def test_an_embedding():
    weight = torch.quantize_per_channel(torch.randn(5, 8), torch.full((5,), 0.1), torch.zeros(5), 0, torch.quint8)
    packed = torch.ops.quantized.embedding_bag_prepack(weight)
    assert packed_kind(packed) == EMBEDDING
    assert_same_bits(embedding_weight(state_of(packed)).dequantize(), unpack_with_torch(packed, "e")[0].dequantize())


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_a_cell(dtype):
    lstm = tq.quantize_dynamic(nn.Sequential(nn.LSTM(6, 4)), {nn.LSTM}, dtype=dtype)[0]
    packed = lstm._all_weight_values[0].param
    assert packed_kind(packed) == CELL
    ih, hh = cell_parts(state_of(packed))
    assert packed_kind(ih) == packed_kind(hh) == LINEAR
    assert [tuple(unpack_with_torch(part, "cell")[0].shape) for part in (ih, hh)] == [(16, 6), (16, 4)]


@pytest.mark.parametrize("parts", [linear_parts, conv_parts, embedding_weight, cell_parts])
@pytest.mark.parametrize("state", [None, 3, "2", (), ("2",), [1, 2, 3], ("quantized_dynamic", [], [], [], [None])])
def test_what_is_no_state(parts, state):
    assert parts(state) is None


@pytest.mark.parametrize("numbers", [[], [2], [2, 1.0], [9] * 39, [0, 0, 0], [1, 1, 0, 1, 0, 1, None]])
def test_what_is_no_config(numbers):
    assert conv_geometry(numbers) is None


def test_other_classes():
    assert packed_kind("__torch__.torch.classes.xnnpack.Conv2dOpContext") == packed_kind(nn.Linear(2, 2)) == ""
    assert packed_kind(f"__torch__.torch.classes.{CONV3D}") == CONV3D


@pytest.mark.parametrize("engine", ["onednn", "fbgemm", "qnnpack"])
@pytest.mark.parametrize("dims", [0, 2, 3])
def test_the_engine_that_packed(engine, dims):
    weight = torch.quantize_per_tensor(torch.randn(8, 8, *[3] * dims), 0.1, 0, torch.qint8)
    with cases.engine(engine):
        if dims:
            prepack = getattr(torch.ops.quantized, f"conv{dims}d_prepack")
            packed = prepack(weight, None, [1] * dims, [0] * dims, [1] * dims, 1)
        else:
            packed = torch.ops.quantized.linear_prepack(weight, None)
    assert engine_of(packed) == engine
