import torch
from qdeq.weight import QuantizedWeight


def dequantize_source(x, *, where, out=None, dtype=None, allow_bad_scales=False):
    v = (x.unpack()[0] if isinstance(x, torch.ScriptObject) else x).dequantize()
    assert out.shape == v.shape, (where, out.shape, v.shape)
    return out.copy_(v)


def unpack_source(x, *, where):
    return QuantizedWeight(x)
