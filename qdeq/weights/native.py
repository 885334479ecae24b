"""The native side, typed: operators, kernel choice, facts about the build. The only file that names the extensions.

The operators take plain tensors, so ``torch.compile`` traces through them; their fake kernels are here beside the
wrappers. They check enough to be memory safe and raise a bare ``RuntimeError``: callers find out what was wrong and
word it (:mod:`qdeq.weights.weight`).
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qdeq.errors import QdeqValueError, expected

try:
    import qdeq._C as _C
except ImportError as error:
    got = f"none that loads into torch {torch.__version__} ({error})"
    remedy = (
        "Run `pip install .` in a clone of qdeq, in this environment, beside torch 2.13 or newer; a folder named qdeq "
        "in the working directory hides the installed package."
    )
    raise ImportError(expected("qdeq", "its extension qdeq._C", got, remedy)) from error

__all__ = [
    "OUT_DTYPES",
    "build_info",
    "built_with_torch",
    "current_kernel",
    "dequantize",
    "dequantize_codes",
    "dequantize_direct",
    "dequantize_quantized",
    "fresh_strides",
    "kernels",
    "this_torch",
    "use_kernel",
    "why_not_in_place",
]

OUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def built_with_torch() -> str:
    """Return the version of the torch that the extensions were built with, local part and all."""
    return _C.built_with_torch


def _load_this_torch() -> tuple[Any, str]:
    """Load ``qdeq._torch``, which belongs to the torch that it was built with, or say why it may not be loaded."""
    built, git = _C.built_with_torch, _C.built_with_git
    running, running_git = torch.__version__, torch.version.git_version
    if built != running:
        return None, f"qdeq was built with torch {built}, this is torch {running}. Reinstall qdeq to change that"
    if git != running_git:
        what = f"qdeq was built with torch {built} of commit {git}, this is the one of commit {running_git}"
        return None, f"{what}. Reinstall qdeq to change that"
    try:
        return importlib.import_module("qdeq._torch"), ""
    except ImportError as error:
        return None, f"the extension qdeq._torch was not built or does not load: {error}"


this_torch, _why_not_loaded = _load_this_torch()
"""The extension of this torch (``qdeq/_torch.pyi``), None where it may not be loaded."""


def why_not_in_place() -> str:
    """Say why packed weights cannot be read where they lie; empty if they can."""
    if this_torch is not None and not this_torch.reads_packed_weights:
        return "the extension qdeq._torch was built with a torch without fbgemm"
    return _why_not_loaded


def _no_short_way(q: object, out: object) -> Tensor | None:
    return None


# dequantize_direct(q, out): q's values in float32 in ``out`` (None: a fresh tensor), without the dispatcher's cost, for
# small whole contiguous tensors; None where it is not that simple, and for everything that could be an error.
dequantize_direct: Callable[[object, object], Tensor | None] = getattr(this_torch, "dequantize_small", _no_short_way)

_dequantize = torch.ops.qdeq.dequantize.default
_dequantize_out = torch.ops.qdeq.dequantize_out.default
_dequantize_codes_out = torch.ops.qdeq.dequantize_codes_out.default
_dequantize_quantized = torch.ops.qdeq.dequantize_quantized.default
_dequantize_quantized_out = torch.ops.qdeq.dequantize_quantized_out.default


def dequantize(
    int_repr: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: int | None,
    shape: Sequence[int],
    bits: int,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Dequantize plain integers.

    Args:
        int_repr: int8, uint8 or int32 of ``shape`` and any strides; for ``bits`` 2 or 4 contiguous packed uint8.
        scale: float64 or float32, contiguous; one value, or one per index of ``axis``.
        zero_point: as many, int64 (affine) or float32 (float qparams).
        axis: the channels' dimension, not negative; None for one scale.
        shape: of the result.
        bits: 2, 4, 8 or 32.
        dtype: float32, bfloat16 or float16.
        allow_bad_scales: do not refuse scales that are NaN, infinite, zero or negative in float32.
        out: written to and returned, if given.

    Raises:
        RuntimeError: an argument breaks these rules.

    """
    channels = -1 if axis is None else axis
    if out is None:
        fresh: Tensor = _dequantize(int_repr, scale, zero_point, channels, shape, bits, dtype, allow_bad_scales)
        return fresh
    _dequantize_out(int_repr, scale, zero_point, channels, shape, bits, dtype, allow_bad_scales, out)
    return out


def dequantize_quantized(
    q: Tensor,
    per_channel: bool,
    dtype: torch.dtype = torch.float32,
    allow_bad_scales: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """Dequantize a CPU tensor of torch's quantized dtypes, read where it lies; otherwise as :func:`dequantize`."""
    if out is None:
        fresh: Tensor = _dequantize_quantized(q, per_channel, dtype, allow_bad_scales)
        return fresh
    _dequantize_quantized_out(q, per_channel, dtype, allow_bad_scales, out)
    return out


def dequantize_codes(
    codes: Tensor, values: Tensor, scale: Tensor, zero: Tensor, *, block: Sequence[int], out: Tensor
) -> None:
    """Dequantize contiguous uint8 ``codes`` of shape (matrices, rows, bytes) into ``out`` (matrices, rows, columns).

    ``values``: 2^bits float32, NaNs as 0x7FC00000. ``scale``, ``zero`` (empty for none): float32, finite, contiguous,
    for each matrix a grid of blocks of ``block`` rows and columns, the last of which may be cut. Codes lie low bits
    first. RuntimeError: an argument breaks these rules.
    """
    _dequantize_codes_out(codes, values, scale, zero, out.shape, block, out.dtype, out)


def _like_channels_last(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    if len(sizes) not in (4, 5) or strides[1] == 0:
        return False
    smallest = 0
    for dim in (1, *range(len(sizes) - 1, 1, -1), 0):
        if sizes[dim] == 0 or strides[dim] < smallest or (dim == 0 and smallest == strides[1]):
            return False
        smallest = strides[dim] * max(sizes[dim], 1)
    return True


def fresh_strides(sizes: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Strides that torch's ``dequantize()`` gives a result: channels_last if the source looks so, else contiguous."""
    order = list(range(len(sizes) - 1, -1, -1))
    if _like_channels_last(sizes, strides):
        order.remove(1)
        order.insert(0, 1)
    result = [1] * len(sizes)
    step = 1
    for dim in order:
        result[dim] = step
        step = step * max(sizes[dim], 1)
    return tuple(result)


@torch.library.register_fake("qdeq::dequantize")  # type: ignore[untyped-decorator]
def _fake_dequantize(
    int_repr: Tensor,
    _scale: Tensor,
    _zero: Tensor,
    _axis: int,
    shape: Sequence[int],
    bits: int,
    dtype: torch.dtype,
    _: bool,
) -> Tensor:
    strides = int_repr.stride() if bits >= 8 else [0] * len(shape)
    return torch.empty_strided(shape, fresh_strides(shape, strides), dtype=dtype, device=int_repr.device)


@torch.library.register_fake("qdeq::dequantize_codes_out")  # type: ignore[untyped-decorator]
@torch.library.register_fake("qdeq::dequantize_out")  # type: ignore[untyped-decorator]
def _fake_out(*_: object) -> None:
    return None


# Elements below which no result is large, in any dtype: csrc/common/memory.cpp draws the line.
_MAYBE_LARGE = 1 << 18


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return ``torch.empty(shape, dtype=dtype)``, on huge pages where it is large and the kernel grants them.

    A fresh large result otherwise costs more in page faults than in arithmetic.
    """
    if math.prod(shape) < _MAYBE_LARGE:
        return torch.empty(shape, dtype=dtype)
    result: Tensor = torch.ops.qdeq.empty.default(shape, dtype)
    return result


def kernels() -> list[str]:
    """Names of the kernel sets that run on this machine, fastest first. The last is always ``"scalar"``."""
    return _C.kernels()


def current_kernel() -> str:
    """Name of the kernel set in use."""
    return _C.current_kernel()


class _KernelChoice:
    """What :func:`use_kernel` returns: leaving a ``with`` block over it brings the earlier choice back."""

    def __init__(self, previous: str | None) -> None:
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _force(self._previous, "use_kernel")


_forced: str | None = None


def _force(name: str | None, where: str) -> None:
    global _forced
    if name is not None and not isinstance(name, str):
        raise QdeqValueError(
            expected(where, "the name of a kernel set or None", repr(name), f"Use one of {kernels()}.")
        )
    if not _C.force_kernel(name):
        raise QdeqValueError(expected(where, f"one of {kernels()}", repr(name), "Other sets do not run here."))
    _forced = name


def use_kernel(name: str | None) -> _KernelChoice:
    """Use one kernel set for everything that follows, in every thread.

    A plain call lasts; ``with use_kernel("scalar"):`` ends with the block. All sets give the same bits. The variable
    ``QDEQ_KERNEL`` makes the same choice when the kernels are loaded, at their first use.

    Args:
        name: one of :func:`kernels`, or None for the automatic choice.

    Raises:
        QdeqValueError: no such set runs here.

    """
    previous = _forced
    _force(name, "use_kernel")
    return _KernelChoice(previous)


def build_info() -> dict[str, object]:
    """Return what was built and what runs: torch versions, compiler, kernel sets, cache size in bytes.

    ``QDEQ_KERNEL`` and :func:`use_kernel` show in ``current_kernel``.
    """
    return {
        "torch": torch.__version__,
        "built_with_torch": built_with_torch(),
        "compiler": _C.compiler,
        "kernels": kernels(),
        "current_kernel": current_kernel(),
        "last_level_cache_bytes": _C.last_level_cache_bytes(),
        "packed_in_place": not why_not_in_place(),
        "packed_in_place_why_not": why_not_in_place(),
    }


if os.environ.get("QDEQ_KERNEL"):
    _force(os.environ["QDEQ_KERNEL"], "QDEQ_KERNEL")
