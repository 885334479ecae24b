"""The loop that everybody writes first: copy whatever has ``weight`` in its name. It raises nothing and loses the rest.

A converted Linear keeps its weight and bias as one tuple under ``..._packed_params._packed_params``: no ``weight``
in that name. A bias has none either. What is not copied keeps the random values of the fresh network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["copy_in_place", "copy_through_state_dict"]


def _by_hand(weight: Tensor) -> Tensor:
    per_channel = (-1, *[1] * (weight.dim() - 1))
    zero_point = weight.q_per_channel_zero_points().view(per_channel)
    scale = weight.q_per_channel_scales().view(per_channel)
    return ((weight.int_repr().int() - zero_point) * scale).float()


def copy_through_state_dict(int8: nn.Module, fresh: nn.Module) -> list[str]:
    """Run the loop with its own arithmetic, ``(q - zero_point) * scale``; return the names that it copied."""
    state = fresh.state_dict()
    copied = [name for name in int8.state_dict() if "weight" in name]
    for name in copied:
        state[name] = _by_hand(int8.state_dict()[name])
    fresh.load_state_dict(state)
    return copied


def copy_in_place(int8: nn.Module, fresh: nn.Module) -> list[str]:
    """Run the loop with ``dequantize()``, into the parameters where they are; return the names that it copied."""
    copied = []
    for name, value in int8.state_dict().items():
        if "weight" in name:
            with torch.no_grad():
                fresh.get_parameter(name).copy_(value.dequantize())
            copied.append(name)
    return copied
