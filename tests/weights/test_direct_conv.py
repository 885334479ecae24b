"""One rule tells fbgemm's direct transposed convolutions, live and saved. Recovery: tests/sources/eager/classes."""

from __future__ import annotations

import pytest
import torch

from qdeq.weights.direct_conv import ConvGeometry, is_direct_weight, saved_weight_doubt
from qdeq.weights.packed import is_direct_conv
from qdeq.weights.packed_state import is_lost, unpack_with_torch

PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
SETUPS = {
    "direct": {},
    "stride 2": {"stride": (2, 2)},
    "stride 3": {"stride": (3, 1)},
    "padding": {"padding": (0, 1)},
    "dilation": {"dilation": (1, 2)},
    "groups": {"groups": 8},
    "channels": {"shape": (12, 8, 2, 3)},
    "kernel": {"shape": (16, 8, 3, 3)},
    "width 7": {"shape": (16, 8, 2, 7)},
    "width 1": {"shape": (16, 8, 2, 1)},
}


def packed_conv(shape=(16, 8, 2, 3), **options):
    stride, padding, dilation, groups = ({**PLAIN, **options}[name] for name in PLAIN)
    weight = torch.quantize_per_tensor(torch.randn(shape), 0.1, 0, torch.qint8)
    return torch.ops.quantized.conv_transpose2d_prepack(weight, None, stride, padding, (0, 0), dilation, groups)


@pytest.mark.parametrize("options", SETUPS.values(), ids=SETUPS)
def test_the_rule_agrees_with_the_packed_object(options):
    """The extension looks at what fbgemm made; the rule only at strides and set-up, as files have them."""
    packed = packed_conv(**options)
    weight, _ = unpack_with_torch(packed, "conv")
    assert is_direct_conv(packed) == is_lost(packed, weight)
    geometry = ConvGeometry.of_packed(packed)
    direct = is_direct_weight(weight.shape, weight.stride(), "per_tensor_affine", geometry)
    assert direct == is_direct_conv(packed)
    assert bool(saved_weight_doubt(weight.shape, weight.stride(), "per_tensor_affine", geometry)) == direct


def test_a_plain_weight_is_not_suspected():
    stride = torch.empty(16, 8, 2, 3).stride()
    assert not is_direct_weight((16, 8, 2, 3), stride, "per_tensor_affine", None)
    assert not is_direct_weight((16, 8, 2, 3), (1, 96, 48, 16), None, None)
    assert not is_direct_weight((16, 8, 2, 3), (1,), "per_tensor_affine", None)  # sub-byte values, packed
    assert is_direct_weight((16, 8, 2, 3), (1, 96, 48, 16), "per_tensor_affine", None)
