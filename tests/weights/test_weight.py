"""QuantizedWeight: what it refuses, what it keeps, and the way back to torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import qdeq
from qdeq import QuantizedWeight
from tests.helpers.tensors import INT_DTYPES, SUB_BYTE_DTYPES, assert_same_bits, random_quantized


def fields(**changes):
    good = {
        "int_repr": torch.arange(6, dtype=torch.int8).view(2, 3),
        "scale": torch.tensor([0.5, 0.25], dtype=torch.float64),
        "zero_point": torch.tensor([0, 1]),
        "axis": 0,
        "qscheme": "per_channel_affine",
        "dtype": "qint8",
        "shape": (2, 3),
    }
    return good | changes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


WRONG = [
    ("int_repr", {"int_repr": [1, 2]}, qdeq.QdeqTypeError),
    ("int_repr", {"int_repr": torch.zeros(2, 3)}, qdeq.QdeqValueError),
    ("int_repr", {"int_repr": torch.zeros(2, 3, dtype=torch.uint8)}, qdeq.QdeqValueError),
    ("int_repr", {"int_repr": torch.zeros(3, 2, dtype=torch.int8)}, qdeq.QdeqValueError),
    ("int_repr", {"int_repr": torch.zeros(2, 3, dtype=torch.int8, device="meta")}, qdeq.QdeqValueError),
    ("int_repr", {"dtype": "quint4x2", "int_repr": torch.zeros(2, dtype=torch.uint8)}, qdeq.QdeqValueError),
    ("int_repr", {"dtype": "quint4x2", "int_repr": torch.zeros(4, dtype=torch.uint8)}, qdeq.QdeqValueError),
    ("int_repr", {"dtype": "quint2x4", "int_repr": torch.zeros(4, dtype=torch.uint8)[::2]}, qdeq.QdeqValueError),
    ("scale", {"scale": 0.5}, qdeq.QdeqTypeError),
    ("scale", {"scale": torch.tensor([0.5, 0.25])}, qdeq.QdeqValueError),
    ("scale", {"scale": torch.ones(3, dtype=torch.float64)}, qdeq.QdeqValueError),
    ("scale", {"scale": torch.ones(4, dtype=torch.float64)[::2]}, qdeq.QdeqValueError),
    ("zero_point", {"zero_point": torch.tensor([0.0, 1.0])}, qdeq.QdeqValueError),
    ("zero_point", {"zero_point": torch.tensor([0, 1], dtype=torch.int32)}, qdeq.QdeqValueError),
    ("zero_point", {"zero_point": torch.tensor([0, 128])}, qdeq.QdeqValueError),
    ("zero_point", {"zero_point": torch.tensor([2**40, 0])}, qdeq.QdeqValueError),
    ("zero_point", {"zero_point": torch.tensor(0)}, qdeq.QdeqValueError),
    ("zero_point", {"qscheme": "per_channel_affine_float_qparams"}, qdeq.QdeqValueError),
    ("axis", {"axis": None}, qdeq.QdeqValueError),
    ("axis", {"axis": -1}, qdeq.QdeqValueError),
    ("axis", {"axis": 2}, qdeq.QdeqValueError),
    ("axis", {"qscheme": "per_tensor_affine"}, qdeq.QdeqValueError),
    ("scale", {"axis": 1}, qdeq.QdeqValueError),
    ("qscheme", {"qscheme": "per_tensor_symmetric"}, qdeq.QdeqValueError),
    ("dtype", {"dtype": "torch.qint8"}, qdeq.QdeqValueError),
    ("shape", {"shape": [2, 3]}, qdeq.QdeqTypeError),
    ("shape", {"shape": (2, -3)}, qdeq.QdeqTypeError),
]


@pytest.mark.parametrize(("field", "changes", "kind"), WRONG, ids=[f"{f}-{i}" for i, (f, _, _) in enumerate(WRONG)])
def test_wrong_fields_are_refused_by_name(field, changes, kind):
    QuantizedWeight(**fields())
    with pytest.raises(kind, match=rf"^QuantizedWeight\.{field}: expected .*, got .*\. .*\.$"):
        QuantizedWeight(**fields(**changes))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantizedWeight(**fields()).axis = 1


@pytest.mark.parametrize("dtype", INT_DTYPES + SUB_BYTE_DTYPES, ids=str)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_from_tensor_and_back(dtype, axis):
    q = random_quantized((7, 9), dtype, axis, generator(), true_double=True)
    w = QuantizedWeight.from_tensor(q)
    back = w.to_torch()
    assert back.qscheme() == q.qscheme()
    assert torch.equal(back.int_repr(), q.int_repr())
    assert_same_bits(back.dequantize(), q.dequantize())
    assert back.data_ptr() != q.data_ptr()
    assert w.dtype == str(q.dtype).removeprefix("torch.")
    assert w.axis == axis


def test_to_torch_keeps_channels_last():
    q = random_quantized((4, 6, 5, 3), torch.qint8, 0, generator()).contiguous(memory_format=torch.channels_last)
    back = QuantizedWeight.from_tensor(q).to_torch()
    assert back.stride() == q.stride()
    assert torch.equal(back.int_repr(), q.int_repr())
    assert_same_bits(back.dequantize(), q.dequantize())


def test_integers_alias_and_scales_do_not():
    q = random_quantized((4, 6), torch.qint8, 0, generator())
    w = QuantizedWeight.from_tensor(q)
    assert w.int_repr.data_ptr() == q.data_ptr()
    assert w.scale.data_ptr() != q.q_per_channel_scales().data_ptr()
    assert w.zero_point.data_ptr() != q.q_per_channel_zero_points().data_ptr()


def test_scales_outlive_the_packed_object_they_came_from():
    """Torch's embedding scales view the packed object's memory, which is gone with the module."""
    from torch.ao.nn.quantized import EmbeddingBag

    for _ in range(20):
        module = EmbeddingBag(50, 16)
        w = QuantizedWeight.from_tensor(module.weight())
        want = w.scale.clone()
        del module
        _ = [torch.full((50, 16), 1e9) for _ in range(4)]
        assert torch.equal(w.scale, want)


def test_from_tensor_refuses_what_is_not_quantized():
    for bad in (torch.zeros(3), [1], None):
        with pytest.raises(qdeq.QdeqTypeError, match="expected a quantized tensor"):
            QuantizedWeight.from_tensor(bad)


@pytest.mark.parametrize("dtype", INT_DTYPES + SUB_BYTE_DTYPES, ids=str)
def test_saturated_share_counts_both_ends(dtype):
    q = random_quantized((7, 9), dtype, None, generator())
    w = QuantizedWeight.from_tensor(q)
    info = w.integers
    values = w.values().long()
    assert w.saturated_share() == ((values == info.low) | (values == info.high)).sum().item() / 63
    empty = QuantizedWeight.from_tensor(random_quantized((0, 4), dtype, None, generator()))
    assert empty.saturated_share() == 0


def test_unpack_takes_weights_and_tensors():
    q = random_quantized((4, 6), torch.quint8, 1, generator())
    w = qdeq.unpack(q)
    assert qdeq.unpack(w) is w
    assert_same_bits(qdeq.dequantize(w), q.dequantize())
    with pytest.raises(qdeq.QdeqTypeError, match="unpack: expected a quantized tensor"):
        qdeq.unpack(torch.zeros(3))
