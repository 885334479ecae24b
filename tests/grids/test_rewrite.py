"""Generated forwards can be copied, pickled and reloaded."""

from __future__ import annotations

import copy
import io
import pickle

import torch

import qdeq
from tests.grids.models import Pooled
from tests.helpers.models import assert_same_bits, quantize


def test_rewritten_models_copy_pickle_and_reload():
    torch.manual_seed(7)
    x = torch.randn(4, 3, 12, 12)
    model = quantize(Pooled(), x)
    rebuilt = qdeq.dequantize_model(model, activations="fake_quant")
    expected = rebuilt(x)
    file = io.BytesIO(pickle.dumps(rebuilt))
    for copied in (copy.deepcopy(rebuilt), pickle.load(file)):
        assert isinstance(copied, Pooled)
        assert copied.quantize_avg_pool2d is not rebuilt.quantize_avg_pool2d
        assert_same_bits(copied(x), expected)
    other = qdeq.dequantize_model(quantize(Pooled(), 3 * x), activations="fake_quant")
    other.load_state_dict(rebuilt.state_dict())
    assert_same_bits(other(x), expected)
