"""Whether a weight or a bias is still as some initialisation leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qdeq.diagnosis.sides.integers import FloatLayer

__all__ = ["initial_distribution", "is_uniform", "rnn_bounds"]

# Gates of torch's recurrent modules: weights of so many times hidden_size rows. Of any other module all are possible.
_GATES = {"torch.nn.LSTM": 4, "torch.nn.LSTMCell": 4, "torch.nn.GRU": 3, "torch.nn.GRUCell": 3}
_GATES |= {"torch.nn.RNN": 1, "torch.nn.RNNCell": 1}


def rnn_bounds(layer: FloatLayer) -> list[float]:
    """Bounds within which torch's RNNs and cells draw their weights and biases: 1 / sqrt(hidden_size)."""
    if "weight_ih" not in layer.parameter and "weight_hh" not in layer.parameter:
        return []
    gates = _GATES.get(layer.class_name)
    return [(layer.weight.shape[0] / count) ** -0.5 for count in ((gates,) if gates else (4, 3, 1))]


def initial_distribution(weight: Tensor, bounds: Sequence[float] = ()) -> str | None:
    """Name the initialisation whose distribution ``weight`` still has; None for trained weights.

    Tested are a constant, torch's default (uniform, bound 1 / sqrt(fan_in)), and the uniform and normal forms of
    Kaiming's and Xavier's rules, and the normal ones of torchvision, by Kolmogorov's distance; and, as uniform,
    ``bounds``.
    """
    if weight.numel() < 2:
        return None
    low, high = float(weight.min()), float(weight.max())
    if low == high:
        return f"the constant {low:g}"
    if weight.ndim < 2:
        return None
    values = _sorted_sample(weight)
    field = math.prod(weight.shape[2:])
    fan_in, fan_out = weight.shape[1] * field, weight.shape[0] * field
    bound = max(-low, high)
    kaiming = (1 / fan_in**0.5, (6 / fan_in) ** 0.5, (6 / fan_out) ** 0.5, (6 / (fan_in + fan_out)) ** 0.5)
    for size in (*bounds, *kaiming):
        if 0.5 * size < bound and is_uniform(values, bound, size):
            return f"uniform within {size:.3g}, as initialised"
    normal = (0.01, 0.02, (2 / fan_out) ** 0.5, (2 / fan_in) ** 0.5, fan_in**-0.5, (2 / (fan_in + fan_out)) ** 0.5, 1.0)
    for std in normal:
        if _fits(values, 0.5 * (1 + torch.erf(values / (std * 2**0.5)))):
            return f"normal with standard deviation {std:.3g}, as initialised"
    return None


def _sorted_sample(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    if len(flat) > 65536:
        flat = flat[torch.randint(len(flat), (65536,), generator=torch.Generator().manual_seed(0))]
    return flat.double().sort().values


def _fits(values: Tensor, cumulative: Tensor) -> bool:
    steps = torch.arange(len(values) + 1, dtype=torch.float64) / len(values)
    distance = float(torch.maximum((steps[1:] - cumulative).abs(), (cumulative - steps[:-1]).abs()).max())
    # Distance that a sample of the right distribution exceeds once in about 2000 tries.
    return distance < 2.0 / math.sqrt(len(values))


def is_uniform(values: Tensor, largest: float, bound: float) -> bool:
    """Whether sorted float64 values are uniform within ``bound``; ``largest`` is the largest of their sizes."""
    return largest <= bound * (1 + 1e-6) and _fits(values, (values / bound + 1) / 2)
