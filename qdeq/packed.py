import torch


def is_packed_weight(x):
    return isinstance(x, torch.ScriptObject)


def packed_bias(x):
    b = x.bias()
    return None if b is None else b.detach().clone()
