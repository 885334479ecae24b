"""Random quantized tensors and the comparison that the project means by "equal"."""

from __future__ import annotations

import torch
from torch import Tensor

INT_DTYPES = (torch.qint8, torch.quint8, torch.qint32)
SUB_BYTE_DTYPES = (torch.quint4x2, torch.quint2x4)
RANGES = {
    torch.qint8: (-128, 127),
    torch.quint8: (0, 255),
    torch.qint32: (-(2**31), 2**31 - 1),
    torch.quint4x2: (0, 15),
    torch.quint2x4: (0, 3),
}


def assert_same_bits(got: Tensor, want: Tensor, what: object = "") -> None:
    """Same shape, strides, dtype and bits; NaN equals NaN whatever its payload."""
    assert got.dtype == want.dtype, what
    assert got.shape == want.shape, what
    assert got.stride() == want.stride() or got.numel() == 0, (what, got.stride(), want.stride())
    as_int = torch.int32 if got.dtype == torch.float32 else torch.int16
    nan = want.isnan()
    assert torch.equal(nan, got.isnan()), what
    differs = (got.contiguous().view(as_int) != want.contiguous().view(as_int)) & ~nan
    assert not differs.any(), (what, int(differs.sum()), got[differs][:3], want[differs][:3])


def random_scales(count: int, generator: torch.Generator, *, true_double: bool) -> Tensor:
    """float64 scales over many orders of magnitude; without ``true_double`` each is a float32 value."""
    exponent = torch.rand(count, generator=generator, dtype=torch.float64) * 40 - 30
    scale = torch.rand(count, generator=generator, dtype=torch.float64).add(0.5) * torch.exp2(exponent)
    return scale if true_double else scale.float().double()


def random_integers(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Integers over the whole range of ``dtype``, its two ends among them."""
    low, high = RANGES[dtype]
    values = torch.randint(low, high + 1, shape, generator=generator)
    flat = values.view(-1)
    if flat.numel() > 1:
        flat[0], flat[-1] = low, high
    storage = {torch.qint8: torch.int8, torch.qint32: torch.int32}.get(dtype, torch.uint8)
    return values.to(storage)


def random_zero_points(count: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """int64 zero points in the range of ``dtype``, the two ends first."""
    low, high = RANGES[dtype]
    zero_point = torch.randint(low, high + 1, (count,), generator=generator)
    zero_point[: min(2, count)] = torch.tensor([low, high])[: min(2, count)]
    return zero_point


def random_quantized(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    axis: int | None,
    generator: torch.Generator,
    *,
    true_double: bool = False,
    float_qparams: bool = False,
) -> Tensor:
    """Return a quantized tensor with integers, scales and zero points over their whole ranges."""
    if dtype in SUB_BYTE_DTYPES:
        return _random_sub_byte(shape, dtype, axis, generator)
    values = random_integers(shape, dtype, generator)
    if axis is None:
        scale = float(random_scales(1, generator, true_double=true_double))
        zero_point = int(random_zero_points(2, dtype, generator)[int(torch.randint(0, 2, (), generator=generator))])
        return torch._make_per_tensor_quantized_tensor(values, scale, zero_point)
    scales = random_scales(shape[axis], generator, true_double=true_double)
    if float_qparams:
        zero_points = torch.rand(shape[axis], generator=generator) * 300 - 150
        return torch._make_per_channel_quantized_tensor(values, scales.float(), zero_points, axis)
    return torch._make_per_channel_quantized_tensor(
        values, scales, random_zero_points(shape[axis], dtype, generator), axis
    )


def _random_sub_byte(
    shape: tuple[int, ...], dtype: torch.dtype, axis: int | None, generator: torch.Generator
) -> Tensor:
    per_byte = 2 if dtype == torch.quint4x2 else 4
    if axis is None:
        scale = float(random_scales(1, generator, true_double=True))
        zero_point = int(random_zero_points(2, dtype, generator)[1])
        q = torch._empty_affine_quantized(shape, scale=scale, zero_point=zero_point, dtype=dtype)
    else:
        q = torch._empty_per_channel_affine_quantized(
            shape,
            scales=random_scales(shape[axis], generator, true_double=False).float(),
            zero_points=torch.rand(shape[axis], generator=generator) * 30 - 15,
            axis=axis,
            dtype=dtype,
        )
    length = (q.numel() + per_byte - 1) // per_byte
    packed = torch.empty(0, dtype=torch.uint8).set_(q.untyped_storage(), 0, (length,), (1,))
    packed.copy_(torch.randint(0, 256, (length,), generator=generator))
    return q
