"""Recovers the weight of fbgemm's direct transposed convolution by running it.

torch's ``unpack()`` returns uninitialized memory for this packed form, but its forward reads the true weight. On a
1 x 1 image that is one in a single channel, the output is that channel's slice of the weight:

    output[0, o, h, w] = weight[i, o, h, w]      for input[0, i, 0, 0] = 1, all else 0

An input scale of 2^40 makes the float bias vanish, and an output scale of 2^40 times the weight's makes the integers
pass unchanged. Whether the packed weight is the one that was trained cannot be seen: a copied or loaded module was
packed again from uninitialized memory and looks the same. Only the caller knows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected

__all__ = ["lost_weight", "recover_weight"]

_INPUT_SCALE = 2.0**40
_NUM_CHECKS = 8


def lost_weight(where: str) -> str:
    """The error for a module whose weight was not asked to be recovered."""
    return expected(
        where,
        "a packed weight that can be read back",
        "fbgemm's direct transposed convolution (kernel (2, 1..6), stride 1 or 2, no padding, groups 1)",
        "torch returns uninitialized memory for it, so a module that was copied, saved or loaded has lost its weight. "
        "If this one was converted in this process and never copied or loaded, pass recover_direct_conv=True. "
        "Otherwise take the weight from the float model, or convert with another engine.",
    )


def recover_weight(packed: Any, shape: tuple[int, ...], *, where: str) -> Tensor:
    """Read the weight through the convolution itself and check it by running it on random inputs.

    Args:
        packed: packed weight of fbgemm's direct transposed convolution.
        shape: (in_channels, out_channels, height, width).
        where: dotted name of the weight, for errors.

    Returns:
        The qint8 weight, per tensor.

    Raises:
        QdeqValueError: the convolution does not compute what the weight that was read says.

    """
    # Scale and zero point are right where the integers are not.
    declared = packed.unpack()[0]
    if tuple(declared.shape) != shape:
        raise QdeqValueError(expected(where, f"shape {shape}", str(tuple(declared.shape)), "Convert the model again."))
    scale, zero_point = declared.q_scale(), declared.q_zero_point()
    one_hot = torch.eye(shape[0], dtype=torch.uint8)
    rows = [_run(packed, row, scale, 128 + zero_point, shape) for row in one_hot]
    integers = (torch.stack(rows).int() - 128).to(torch.int8)
    _check(packed, integers, scale, zero_point, where)
    recovered: Tensor = torch._make_per_tensor_quantized_tensor(integers, scale, zero_point)
    return recovered


def _run(packed: Any, pixel: Tensor, output_scale: float, zero_point: int, shape: tuple[int, ...]) -> Tensor:
    """Integers (out_channels, height, width) of the convolution of one pixel; batches larger than 1 go wrong."""
    image = pixel.reshape(1, -1, 1, 1).contiguous(memory_format=torch.channels_last)
    quantized = torch._make_per_tensor_quantized_tensor(image, _INPUT_SCALE, 0)
    output = torch.ops.quantized.conv_transpose2d(quantized, packed, output_scale * _INPUT_SCALE, zero_point)
    # Output padding adds rows and columns that hold the bias alone.
    integers: Tensor = output.int_repr()[0, :, : shape[2], : shape[3]]
    return integers


def _check(packed: Any, integers: Tensor, scale: float, zero_point: int, where: str) -> None:
    """Run random 7-bit pixels, which no CPU saturates; a power of two as divisor keeps the rounding exact."""
    shape = tuple(integers.shape)
    generator = torch.Generator().manual_seed(0)
    divisor = 2.0 ** max(0, (shape[0] * 127 * 128).bit_length() - 9)
    for _ in range(_NUM_CHECKS):
        pixel = torch.randint(0, 128, (shape[0],), dtype=torch.uint8, generator=generator)
        actual = _run(packed, pixel, scale * divisor, 128, shape)
        sums = torch.einsum("i,iohw->ohw", pixel.double(), integers.double() - zero_point)
        wanted = ((sums / divisor).round() + 128).clamp(0, 255).to(torch.uint8)
        if not torch.equal(actual, wanted):
            remedy = "Take the weight from the float model, or convert with another engine."
            got = f"{int((actual != wanted).sum())} of {wanted.numel()} outputs that differ"
            raise QdeqValueError(expected(where, "a convolution that computes with the weight it gives", got, remedy))
