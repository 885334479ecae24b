"""Whether an int8 model computes the same on every CPU: x86 ones without VNNI clamp sums of two products to 16 bits.

A test that compares with an int8 model's outputs must hold on both kinds of CPU, so it keeps out of that range:
:func:`spread` makes weights that cannot leave it, :func:`assert_same_on_every_cpu` proves of a run that it did not, by
arithmetic on the integers, whatever CPU the test runs on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INT16 = torch.iinfo(torch.int16)
# Two products of activations up to here and int8 weights fit 16 bits: 2 * 128 * 127 = 32512, 2 * 128 * -128 = -32768.
SAFE_ACTIVATION = 128


def spread(model: nn.Module) -> nn.Module:
    """Zero every second weight, in the order in which fbgemm adds neighbours: one product alone fits 16 bits.

    255 * 127 = 32385 and 255 * -128 = -32640, whatever the activations are.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                kept = torch.ones_like(_in_packing_order(module.weight))
                kept[:, 1::2] = 0
                module.weight *= _in_torchs_order(kept, module.weight)
    return model


def assert_same_on_every_cpu(model: nn.Module, *inputs: Tensor) -> None:
    """Run a converted model and fail where a sum of two products exceeds 16 bits in one of its layers.

    Linear, Conv1d and Conv2d are looked at; other layers pass only with activations that no weight takes out of it.
    """
    found: list[str] = []

    def look(path: str):
        def hook(module: Any, args: Any) -> None:
            x = args[0]
            if isinstance(x, Tensor) and x.is_quantized and x.dtype is torch.quint8 and x.numel():
                share = _saturated_share(module, x)
                if share:
                    found.append(f"{path}: {100 * share:.3g} % of the sums of two products")

        return hook

    handles = [
        module.register_forward_pre_hook(look(path))
        for path, module in model.named_modules()
        if callable(getattr(module, "weight", None))
    ]
    try:
        with torch.no_grad():
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert not found, f"exceed 16 bits, so this test fails on a CPU without VNNI: {'; '.join(found)}"


def _saturated_share(module: Any, x: Tensor) -> float:
    weight, values = module.weight(), x.int_repr()
    if int(values.max()) <= SAFE_ACTIVATION or not weight.is_quantized:
        return 0.0
    integers = weight.int_repr()
    if integers.dim() == 2:
        return _share(values.reshape(-1, values.shape[-1]), integers)
    name = type(module).__name__
    known = integers.dim() <= 4 and not module.transposed
    assert known, f"{name}: only with activations up to {SAFE_ACTIVATION}, got {int(values.max())}"
    geometry = [module.padding, module.dilation, module.stride]
    if integers.dim() == 3:  # a Conv1d is a Conv2d of height 1
        integers, values = integers.unsqueeze(2), values.unsqueeze(2)
        geometry = [(at_height_1, own[-1]) for at_height_1, own in zip((0, 1, 1), geometry, strict=True)]
    (pad_y, pad_x), dilation, stride = geometry
    padded = F.pad(values.float(), (pad_x, pad_x, pad_y, pad_y), value=float(x.q_zero_point()))
    size = integers.shape[2:]
    windows = F.unfold(padded, size, dilation=dilation, stride=stride)
    # (n, groups, channels, positions of the kernel, places) -> rows in packing order, group by group
    windows = windows.reshape(len(values), module.groups, -1, size.numel(), windows.shape[-1]).permute(1, 0, 4, 3, 2)
    rows = windows.reshape(module.groups, -1, windows.shape[3] * windows.shape[4])
    weights = _in_packing_order(integers).reshape(module.groups, -1, rows.shape[-1])
    return max(_share(some, theirs) for some, theirs in zip(rows, weights, strict=True))


def _share(rows: Tensor, weights: Tensor) -> float:
    if rows.shape[1] % 2:
        rows, weights = F.pad(rows, (0, 1)), F.pad(weights, (0, 1))
    count = 0
    for channel in weights.int():
        products = rows.int() * channel
        sums = products[:, 0::2] + products[:, 1::2]
        count += int(((sums < INT16.min) | (sums > INT16.max)).sum())
    return 2 * count / max(1, rows.numel() * len(weights))


def _in_packing_order(weight: Tensor) -> Tensor:
    """(outputs, inputs) of a Linear as they are; of a Conv2d kernel height, kernel width, then input channel."""
    return (weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight).flatten(1)


def _in_torchs_order(flat: Tensor, like: Tensor) -> Tensor:
    if like.dim() == 2:
        return flat
    out, channels, height, width = like.shape
    return flat.reshape(out, height, width, channels).permute(0, 3, 1, 2)
