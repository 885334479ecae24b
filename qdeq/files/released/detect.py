"""Which tensors of a released checkpoint make a weight together: the keys decide, and the config has to agree.

===========================================  ======================================================================
keys                                         a weight of FP8 codes
===========================================  ======================================================================
``M.weight`` and ``M.weight_scale_inv``      blocks, of the size that the config states; despite the name a factor
``M.weight`` and ``M.weight_scale``          a scale for the matrix, for each row, or for blocks
``M.weight`` and ``M.scale``                 as the first, as later checkpoints call it
``M.weight`` and ``M.qscale_weight``         a scale for the matrix
``X`` and ``X_scale_inv``, three dimensions  matrices of experts, one behind another; no block holds values of two
===========================================  ======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from qdeq.files.released.config import Config, Layout
from qdeq.files.safetensors.format import Place
from qdeq.files.untrusted import refuse, shown
from qdeq.weights.block_weight import CODE_DTYPES, SCALE_DTYPES, grid_shape
from qdeq.words import dtype_name, shape_text

__all__ = ["Found", "Grid", "ScaledCodes", "find_weights", "looks_released"]

_CONTRADICTION = "The checkpoint contradicts itself: get a fresh copy."
# Behind the weight's name, and beside it in its module.
_SUFFIXES, _BESIDE = ("_scale_inv", "_scale"), ("scale", "qscale_weight")
# The end of an integer tensor's name, the end of another's that has to be beside it -> kinds that are not read.
_OTHER_KINDS = {
    ("weight_packed", "weight_scale"): "packed weights of compressed-tensors",
    ("weight", "weight_scale_2"): "NVFP4 weights",
    ("qweight", "scales"): "GPTQ or AWQ weights",
    ("weight", "SCB"): "bitsandbytes int8 weights",
    ("weight", "weight.absmax"): "bitsandbytes 4-bit weights",
    ("_blocks", "_scales"): "MXFP4 weights",
}
_OF_ACTIVATIONS = ("input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
                   "activation_scale", "qscale_act")  # fmt: skip
_OF_CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale")
_INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.uint32)


class Grid(NamedTuple):
    """The block of a weight, a size for each dimension as :class:`~qdeq.BlockWeight` has it, and how many there are."""

    block: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ScaledCodes:
    """A weight whose codes and scales are tensors of their own; ``byte_scales``: the scales are uint8 exponents."""

    codes: str
    scale: str
    grid: Grid
    byte_scales: bool


@dataclass
class Found:
    """What a checkpoint holds.

    Attributes:
        weights: dense name -> the tensors that make it.
        dropped: key of a tensor that is no weight -> why.
        notes: dense name -> a remark.

    """

    weights: dict[str, ScaledCodes] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def looks_released(places: Mapping[str, Place]) -> bool:
    """Whether tensors hold weights that only scales beside them explain, by their names and dtypes."""
    if any(place.dtype in CODE_DTYPES and any(_scales_of(name, places)) for name, place in places.items()):
        return True
    return any(_other_kind(name, places) for name in places)


def _scales_of(name: str, places: Mapping[str, Place]) -> Iterator[str]:
    stem = name.removesuffix("weight")
    names = [name + suffix for suffix in _SUFFIXES]
    names += [stem + beside for beside in _BESIDE] if stem != name else []
    return (key for key in names if key in places)


def _other_kind(name: str, places: Mapping[str, Place]) -> str | None:
    """What a tensor is by its name, dtype and neighbours, if that is a kind that is not read."""
    if places[name].dtype not in _INTEGERS:
        return None
    return next(
        (
            kind
            for (end, beside), kind in _OTHER_KINDS.items()
            if name.endswith(end) and name.removesuffix(end) + beside in places
        ),
        None,
    )


def find_weights(where: str, places: Mapping[str, Place], config: Config) -> Found:
    """Find every weight, and what belongs to none.

    Args:
        where: the checkpoint, for errors.
        places: all tensors, by key.
        config: what is said of them.

    Raises:
        QdeqValueError: names the tensor that is of a kind that is not read, lacks its scale, has one that the config
            does not know, or two; or a config that says more than the tensors do.

    """
    for name in places:
        if kind := _other_kind(name, places):
            what, remedy = "weights of FP8 codes with scales", "This kind is not read yet; nothing was written."
            refuse(f"{where}: {shown(name)}", what, kind, remedy)
    found = Found()
    for name, place in places.items():
        if place.dtype in CODE_DTYPES:
            found.weights[name] = _scaled_codes(where, name, places, config)
            found.dropped[found.weights[name].scale] = "scales, used for the weights beside them"
            if _is_left_out(name, config):
                found.notes[name] = f"{config.where} leaves it out, but it has a scale: dequantized"
    if config.method and not found.weights:
        got = "none with FP8 codes"
        refuse(config.where, f"weights that are quantized as {config.method} says", got, _CONTRADICTION)
    _judge_the_rest(where, places, found)
    return found


def _scaled_codes(where: str, name: str, places: Mapping[str, Place], config: Config) -> ScaledCodes:
    place, scales = places[name], list(_scales_of(name, places))
    where = f"{where}: {shown(name)}"
    if len(scales) != 1:
        got = " and ".join(map(shown, scales)) or "none"
        remedy = "Open the folder with all shards." if not scales else _CONTRADICTION
        refuse(where, f"one tensor of scales for {dtype_name(place.dtype)} codes", got, remedy)
    scale = places[scales[0]]
    is_bytes = scale.dtype == torch.uint8
    if is_bytes and not config.byte_scales:
        what = f"scales that are floats, as {config.where} says nothing of exponents"
        refuse(f"{where}: {shown(scales[0])}", what, "uint8", _CONTRADICTION)
    if not is_bytes and scale.dtype not in SCALE_DTYPES:
        what = f"scales of {[dtype_name(dtype) for dtype in SCALE_DTYPES]}"
        refuse(f"{where}: {shown(scales[0])}", what, dtype_name(scale.dtype), "Other scales are not read.")
    if config.codes not in (None, dtype_name(place.dtype)):
        refuse(where, f"codes of {config.codes}, as {config.where} says", dtype_name(place.dtype), _CONTRADICTION)
    return ScaledCodes(name, scales[0], _place_scales(where, scales[0], place.shape, scale.shape, config), is_bytes)


def _place_scales(where: str, key: str, shape: tuple[int, ...], scale: tuple[int, ...], config: Config) -> Grid:
    """The size of blocks comes from the config and never from the shapes."""
    fitting = {found for layout in config.layouts if (found := _fit(layout, shape, scale)) is not None}
    if len(fitting) != 1:
        what = f"scales for {shape_text(shape)} codes, {' or '.join(map(str, config.layouts))}"
        what += f", as {config.where} says" if config.method else ""
        got = f"{shown(key)} of shape {shape_text(scale)}"
        remedy = _CONTRADICTION
        if fitting:
            got, remedy = f"{got}, which fits several", "Which of them holds, neither config nor shapes say."
        elif not config.method:
            remedy = "State the size of blocks in config.json beside the weights, as quantization_config."
        refuse(where, what, got, remedy)
    return fitting.pop()


def _fit(layout: Layout, shape: tuple[int, ...], scale: tuple[int, ...]) -> Grid | None:
    """Blocks of the last two dimensions, each matrix with scales of its own; None if the shapes do not fit."""
    dims = len(shape)
    if (layout.rows, layout.cols) == (0, 0) and math.prod(scale) == 1:
        return Grid((0,) * dims, (1,) * dims)
    if dims < 2:
        return None
    leading, block = shape[:-2], (*(1 for _ in shape[:-2]), layout.rows, layout.cols)
    grid = grid_shape(shape, block)
    # Without the dimensions of size 1 at the end: (experts,) and (rows,) are written, too.
    spellings = {grid[:end] for end in range(len(leading), dims + 1) if all(size == 1 for size in grid[end:])}
    if scale not in spellings - {()}:
        return None
    return Grid(tuple(0 if step >= size else step for step, size in zip(block, shape, strict=True)), grid)


def _is_left_out(name: str, config: Config) -> bool:
    return name.removesuffix(".weight") in config.left_out


def _judge_the_rest(where: str, places: Mapping[str, Place], found: Found) -> None:
    modules = {name.rpartition(".")[0] for name in found.weights}
    for name, place in places.items():
        if name in found.weights or name in found.dropped:
            continue
        module, _, last = name.rpartition(".")
        if (last in _OF_ACTIVATIONS and module in modules) or (last in _OF_CACHE and math.prod(place.shape) == 1):
            found.dropped[name] = "scale of activations"
        elif last.endswith(_SUFFIXES) and name.removesuffix("_inv").removesuffix("_scale") in places:
            owner = name.removesuffix("_inv").removesuffix("_scale")
            got = f"{dtype_name(places[owner].dtype)} beside {shown(name)}"
            refuse(f"{where}: {shown(owner)}", "FP8 codes where there are scales", got, _CONTRADICTION)
        elif last == "weight" and place.dtype in _INTEGERS:
            got = f"{dtype_name(place.dtype)} without scales that explain it"
            refuse(f"{where}: {shown(name)}", "a float weight, or FP8 codes with scales", got, "It is not read yet.")
        elif last.endswith("_scale_inv"):
            refuse(f"{where}: {shown(name)}", "a weight beside the scales", "none", _CONTRADICTION)
