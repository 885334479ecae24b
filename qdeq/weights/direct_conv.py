"""fbgemm's direct transposed convolution, whose weight torch loses: how to tell it, what to say, how to recover it.

fbgemm packs a ConvTranspose2d of kernel (2, 1..6), stride 1 or 2, no padding, no dilation and one group, whose
channels are multiples of 8, in a form of its own (FBGEMM, src/FbgemmConv.cc, takeDirectConvPath). torch's ``unpack()``
returns uninitialized memory for it, and so do state_dict, deepcopy and save.

**Telling it.** Neither an unpacked weight nor a state dict says which class packed it, but both keep strides, and those
of fbgemm's transposed convolutions are their own: (1, in * h * w, w * in, in) for a shape (in, out, h, w), a
channels_last tensor of (out, in, h, w) with the first two dimensions swapped. Plain convolutions never have them, nor
do the other engines' transposed ones, which give the strides back that a weight was made with.

**Recovering it.** The forward reads the true weight. On a 1 x 1 image that is one in a single channel, the output is
that channel's slice of the weight:

    output[0, o, h, w] = weight[i, o, h, w]      for input[0, i, 0, 0] = 1, all else 0

An input scale of 2^40 makes the float bias vanish, and an output scale of 2^40 times the weight's makes the integers
pass unchanged. Whether the packed weight is the one that was trained cannot be seen: a copied or loaded module was
packed again from uninitialized memory and looks the same. Only the caller knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import expected, refuse

__all__ = [
    "ConvGeometry",
    "is_direct_weight",
    "lost_weight",
    "recover_weight",
    "saved_weight_doubt",
    "unreadable_weight",
]

_FORM = "fbgemm's direct transposed convolution"
_READABLE = "a packed weight that can be read back"
_LIMITS = f"{_FORM} (kernel (2, 1..6), stride 1 or 2, no padding, groups 1)"
_INPUT_SCALE = 2.0**40
_NUM_CHECKS = 8


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution was set up."""

    transposed: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: Any) -> ConvGeometry:
        """Read the attributes of a float convolution."""
        sizes = module.stride, module.padding, module.dilation
        return cls(module.transposed, *sizes, module.groups, module.output_padding)

    @classmethod
    def of_packed(cls, packed: Any) -> ConvGeometry:
        """Ask a packed convolution."""
        stride, padding, dilation = map(tuple, (packed.stride(), packed.padding(), packed.dilation()))
        return cls(packed.transpose(), stride, padding, dilation, packed.groups(), tuple(packed.output_padding()))

    def may_be_direct(self) -> bool:
        """Whether fbgemm packs a weight of the right shape directly."""
        plain = not any(self.padding) and all(step == 1 for step in self.dilation)
        return self.transposed and plain and self.groups == 1 and all(step in (1, 2) for step in self.stride)


def is_direct_weight(
    shape: Sequence[int], stride: Sequence[int], qscheme: str | None, geometry: ConvGeometry | None
) -> bool:
    """Whether a weight as torch unpacked or saved it is uninitialized memory.

    Args:
        shape: of the weight.
        stride: of the weight as torch made it, in values.
        qscheme: torch's name of the scheme; None for a float weight.
        geometry: of the convolution; None where only the weight is known: then a convolution with padding, groups or
            another stride may look the same.

    """
    if qscheme != "per_tensor_affine" or len(shape) != 4 or len(stride) != 4:  # packed sub-byte values have one stride
        return False
    if geometry is not None and not geometry.may_be_direct():
        return False
    channels_in, channels_out, height, width = shape
    if height != 2 or not 1 <= width <= 6 or channels_in % 8 or channels_out % 8 or not channels_in or not channels_out:
        return False
    of_fbgemm = (1, channels_in * height * width, width * channels_in, channels_in)
    return all(step == own for step, own, size in zip(stride, of_fbgemm, shape, strict=True) if size > 1)


def unreadable_weight(where: str) -> str:
    """The error for a packed weight by itself: nothing can be read from it."""
    remedy = (
        "torch's unpack(), state_dict, deepcopy and save return uninitialized memory for it, so a weight that went "
        "through one of them is lost. Take the weight from the float model, or convert with another engine."
    )
    return expected(where, _READABLE, _LIMITS, remedy)


def lost_weight(where: str) -> str:
    """The error for a module whose weight was not asked to be recovered."""
    remedy = (
        "torch returns uninitialized memory for it, so a module that was copied, saved or loaded has lost its weight. "
        "If this one was converted in this process and never copied or loaded, pass recover_direct_conv=True. "
        "Otherwise take the weight from the float model, or convert with another engine."
    )
    return expected(where, _READABLE, _LIMITS, remedy)


def saved_weight_doubt(
    shape: Sequence[int], stride: Sequence[int], qscheme: str | None, geometry: ConvGeometry | None
) -> str:
    """Why a saved weight may be uninitialized memory, empty if it is not: :func:`is_direct_weight` in words."""
    if not is_direct_weight(shape, stride, qscheme, geometry):
        return ""
    what = f"{_FORM}:"
    if geometry is None:
        if_so = "If this is a ConvTranspose2d with stride 1 or 2, no padding and groups 1,"
        what = f"one of the shape and layout of {_FORM}. {if_so}"
    return (
        f"{what} torch saved uninitialized memory here; convert the live model with "
        "qdeq.dequantize_model(recover_direct_conv=True), or take the float model's weight"
    )


def recover_weight(packed: Any, shape: tuple[int, ...], *, where: str) -> Tensor:
    """Read the qint8 weight through the convolution itself and check it by running it on random inputs.

    Args:
        packed: packed weight of fbgemm's direct transposed convolution.
        shape: (in_channels, out_channels, height, width).
        where: dotted name of the weight, for errors.

    Raises:
        QdeqValueError: the convolution does not compute what the weight that was read says.

    """
    # Scale and zero point are right where the integers are not.
    declared = packed.unpack()[0]
    if tuple(declared.shape) != shape:
        refuse(where, f"shape {shape}", str(tuple(declared.shape)), "Convert the model again.")
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
            refuse(where, "a convolution that computes with the weight it gives", got, remedy)
