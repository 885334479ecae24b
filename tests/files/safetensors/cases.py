"""Quantized tensors of every dtype and layout."""

from __future__ import annotations

import torch

from tests.helpers.tensors import random_quantized

SMALL_BLOCK = 48


def quantized_cases():
    generator = torch.Generator().manual_seed(7)
    conv = random_quantized((6, 4, 3, 3), torch.qint8, 0, generator)
    return {
        "conv.weight": conv,
        "last.weight": conv.contiguous(memory_format=torch.channels_last),
        "tensor.weight": random_quantized((33, 7), torch.quint8, None, generator),
        "axis1.weight": random_quantized((9, 70), torch.qint8, 1, generator),
        "wide.weight": random_quantized((5, 11), torch.qint32, None, generator),
        "nibble.weight": random_quantized((37, 5), torch.quint4x2, 0, generator),
        "crumb.weight": random_quantized((19, 3), torch.quint2x4, 0, generator),
        "scalar.weight": random_quantized((), torch.qint8, None, generator),
        "empty.weight": random_quantized((0, 3), torch.qint8, None, generator),
    }
