"""Saturation of 16-bit sums, by arithmetic on the integers.

x86 CPUs without VNNI multiply uint8 activations with int8 weights by ``vpmaddubsw``, which adds two neighbouring
products and clamps the sum to -32768 .. 32767. Neighbours are consecutive in the order in which fbgemm packs the
weights: input features of a Linear; for a convolution kernel height, kernel width, then input channel.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.sides.integers import IntegerLayer
from qdeq.errors import QdeqValueError, expected
from qdeq.sources.eager.recognise import quantized_sources
from qdeq.weights.packed import engine_of, is_packed_weight

__all__ = ["Saturation", "measure_saturation", "pair_sums"]

INT16_LOW, INT16_HIGH = -32768, 32767
# Sums of two products stay within int16 up to this activation: 2 * 127 * 128 = 32512.
SAFE_ACTIVATION = 127
SAMPLE_OUTPUTS = 64
SAMPLE_CHANNELS = 64
# It matters where this share of a layer's outputs moves by more than half a step.
AFFECTED_SHARE = 0.01


@dataclass(frozen=True)
class Saturation:
    """What clamping 16-bit sums does to a sample of one layer's outputs."""

    saturated_sums: float  # share of the 16-bit sums that are clamped
    wrong_outputs: float  # share of the outputs that move by more than half a step
    largest_steps: float  # largest change of an output, in steps of its scale
    cpu_saturates: bool  # whether this machine's kernels do that

    @property
    def matters(self) -> bool:
        """Whether enough outputs move for a finding."""
        return self.wrong_outputs > AFFECTED_SHARE

    def sentence(self) -> str:
        """Return the finding in words."""
        here = "this CPU" if self.cpu_saturates else "a CPU without VNNI (not this one)"
        wrong = (
            f"{100 * self.wrong_outputs:.0f} % of the int8 outputs are wrong by up to {self.largest_steps:.0f} steps"
        )
        return f"on {here} {wrong}, because sums of two products exceed int16; the float model is right"


def measure_saturation(module: nn.Module, inputs: Tensor, layer: IntegerLayer) -> Saturation | None:
    """Recompute a sample of a quantized Linear's or Conv2d's outputs in integers, with and without the clamp.

    None where nothing can saturate or the layer is of another kind; qnnpack adds in 32 bits. The inputs are quint8.
    """
    if any(
        is_packed_weight(value) and engine_of(value) == "qnnpack"
        for part in module.modules()
        for _, value in quantized_sources(part)
    ):
        return None
    if not inputs.is_quantized or inputs.dtype != torch.quint8 or layer.output is None:
        return None
    values = inputs.int_repr()
    if values.numel() == 0 or int(values.max()) <= SAFE_ACTIVATION:
        return None
    ints = layer.ints
    if ints.full_range[0] != -128 or ints.axis != 0:
        return None
    channels = torch.linspace(0, len(ints.scale) - 1, min(SAMPLE_CHANNELS, len(ints.scale))).long()
    rows = _rows(module, values, int(inputs.q_zero_point()), len(layer.shape))
    if rows is None:
        return None
    weights = ints.values[channels].reshape(len(channels), *layer.shape[1:])
    if weights.ndim == 4:
        weights = weights.permute(0, 2, 3, 1)
    exact, clamped, share = pair_sums(rows, weights.flatten(1))
    multiplier = inputs.q_scale() * ints.scale[channels] / layer.output[0]
    steps = (exact - clamped).abs().double() * multiplier
    return Saturation(share, float((steps > 0.5).double().mean()), float(steps.max()), cpu_saturates())


def pair_sums(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, float]:
    """Integer products of uint8 rows (n, k) and int8 weights (channels, k), exact and with every pair clamped.

    Both are int64 (n, channels); the third value is the share of the pairs that were clamped.
    """
    if rows.shape[1] % 2:
        rows, weights = nn.functional.pad(rows, (0, 1)), nn.functional.pad(weights, (0, 1))
    exact = rows.new_zeros((len(rows), len(weights)), dtype=torch.int64)
    clamped, count = exact.clone(), 0
    for index in range(len(rows)):
        products = rows[index].int() * weights.int()
        sums = products[:, 0::2] + products[:, 1::2]
        limited = sums.clamp(INT16_LOW, INT16_HIGH)
        exact[index], clamped[index] = sums.sum(1), limited.sum(1)
        count += int((limited != sums).sum())
    return exact, clamped, count / max(1, len(rows) * weights.numel() // 2)


def _rows(module: Any, values: Tensor, zero_point: int, weight_dims: int) -> Tensor | None:
    """Return a sample of the rows that the weights are multiplied with, in the order of fbgemm's packing."""
    if weight_dims == 2:
        rows = values.reshape(-1, values.shape[-1])
        return rows[_spread(len(rows))]
    if weight_dims != 4 or getattr(module, "groups", 1) != 1 or getattr(module, "transposed", False):
        return None
    if getattr(module, "padding_mode", "zeros") != "zeros" or values.ndim != 4:
        return None
    (height, width), (down, right) = module.kernel_size, module.stride
    (pad_y, pad_x), (gap_y, gap_x) = module.padding, module.dilation
    padded = nn.functional.pad(values.int(), (pad_x, pad_x, pad_y, pad_y), value=zero_point)
    out_y = (padded.shape[2] - gap_y * (height - 1) - 1) // down + 1
    out_x = (padded.shape[3] - gap_x * (width - 1) - 1) // right + 1
    windows = []
    for place in _spread(len(values) * out_y * out_x).tolist():
        sample, y, x = place // (out_y * out_x), place // out_x % out_y * down, place % out_x * right
        window = padded[sample, :, y : y + gap_y * height : gap_y, x : x + gap_x * width : gap_x]
        windows.append(window.permute(1, 2, 0).flatten())
    return torch.stack(windows)


def _spread(count: int) -> Tensor:
    # An even grid with an odd stride would meet the same column of an image again and again; a draw does not.
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:SAMPLE_OUTPUTS]


def cpu_saturates() -> bool:
    """Whether this CPU's int8 kernels add in 16 bits: an x86 one with neither AVX-512 VNNI nor AVX VNNI.

    The variable ``QDEQ_CPU_SATURATES`` (1 or 0) says so instead: one machine shows what is said on another.
    """
    stated = os.environ.get("QDEQ_CPU_SATURATES", "")
    if stated not in ("", "0", "1"):
        remedy = "1 speaks of a CPU without VNNI, 0 of any other; without it this CPU is asked."
        raise QdeqValueError(expected("QDEQ_CPU_SATURATES", "0 or 1", repr(stated), remedy))
    if stated:
        return stated == "1"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        return _fbgemm_saturates()
    finally:
        torch.backends.quantized.engine = engine


def _fbgemm_saturates() -> bool:
    with torch.no_grad():
        # 255 x 127 twice is 64770 > 32767; an output scale of 400 shows which of the two was summed.
        from torch.ao.nn.quantized import functional as qf

        x = torch.quantize_per_tensor(torch.full((1, 2), 255.0), 1.0, 0, torch.quint8)
        w = torch.quantize_per_tensor(torch.full((1, 2), 127.0), 1.0, 0, torch.qint8)
        result = qf.linear(x, w, None, scale=400.0, zero_point=0).int_repr()
    return int(result[0, 0]) < 150
