"""The tensors that make one weight: where its scales lie, its shape and zero points, against what the config says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

import torch

from qdeq.files.released.config import Config, Layout, Said
from qdeq.files.safetensors.format import Place
from qdeq.files.safetensors.shards import Shards
from qdeq.files.untrusted import is_size, refuse, shown
from qdeq.weights.block_weight import SCALE_DTYPES, grid_shape
from qdeq.words import dtype_name, shape_text

__all__ = ["CONTRADICTION", "SCALE_NAMES", "Grid", "Parts", "float8_scales", "parts_of"]

CONTRADICTION = "The checkpoint contradicts itself: get a fresh copy."
# Behind the name of FP8 codes, and beside them in their module.
SCALE_NAMES, _BESIDE = ("_scale_inv", "_scale"), ("scale", "qscale_weight")
_WORDS = {"float8": "FP8 codes", "nvfp4": "NVFP4", "mxfp4": "MXFP4", "packed": "packed integers", "int8": "integers"}


class Grid(NamedTuple):
    """The block of a weight, a size for each dimension as :class:`~qdeq.BlockWeight` has it, and how many there are."""

    block: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Parts:
    """The keys of what makes a weight, and how it is put together.

    Attributes:
        codes: their bytes are the codes.
        values: what the codes stand for, as :class:`~qdeq.BlockWeight` calls it.
        shape: of the weight.
        scale: the grid of scales.
        grid: where the scales lie.
        byte_scales: the scales are uint8 exponents.
        zero: zero points; None for none.
        zero_bits: they are packed along rows, in words, of so many bits; 0 for one in each value.
        factor: a second scale for all; None for none.
        divides: the factor is a divisor.
        others: keys that were only looked at.

    """

    codes: str
    values: str
    shape: tuple[int, ...]
    scale: str
    grid: Grid
    byte_scales: bool = False
    zero: str | None = None
    zero_bits: int = 0
    factor: str | None = None
    divides: bool = False
    others: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[str, ...]:
        """All keys but that of the codes."""
        return tuple(key for key in (self.scale, self.zero, self.factor, *self.others) if key is not None)


def float8_scales(name: str, places: Mapping[str, Place]) -> list[str]:
    """Return the keys that may be the scales of the FP8 codes called ``name``."""
    stem = name.removesuffix("weight")
    names = [name + suffix for suffix in SCALE_NAMES]
    names += [stem + beside for beside in _BESIDE] if stem != name else []
    return [key for key in names if key in places]


def parts_of(kind: str, name: str, shards: Shards, config: Config) -> tuple[str, Parts]:
    """Return the dense name and the parts of the weight whose codes are called ``name``.

    Raises:
        QdeqValueError: parts are missing or doubled, or contradict each other or the config.

    """
    where = f"{shards.path}: {shown(name)}"
    said = config.of_kind(kind)
    if not said:
        what = f"weights as {config.where} says, {' or '.join(_WORDS[s.kind] for s in config.weights)}"
        if not config.method:
            what = "a config.json beside the weights that says how they are quantized"
        refuse(where, what, _WORDS[kind], CONTRADICTION if config.method else "Put it there.")
    finder = _Finder(where, name, shards, config, said)
    return {
        "float8": finder.float8,
        "nvfp4": finder.nvfp4,
        "mxfp4": finder.mxfp4,
        "packed": finder.packed,
        "int8": finder.int8,
    }[kind]()


class _Finder:
    def __init__(self, where: str, name: str, shards: Shards, config: Config, said: list[Said]) -> None:
        self.where, self.name, self.shards, self.config, self.said = where, name, shards, config, said
        self.places = shards.places
        self.place = self.places[name]
        self.stem = name.removesuffix("weight_packed").removesuffix("weight")

    def float8(self) -> tuple[str, Parts]:
        scales, dtype = float8_scales(self.name, self.places), dtype_name(self.place.dtype)
        if len(scales) != 1:
            got = " and ".join(map(shown, scales)) or "none"
            remedy = CONTRADICTION if scales else "Open the folder with all shards."
            refuse(self.where, f"one tensor of scales for {dtype} codes", got, remedy)
        for said in self.said:
            if said.codes not in (None, dtype):
                refuse(self.where, f"codes of {said.codes}, as {self.config.where} says", dtype, CONTRADICTION)
        byte_scales = self._check_scale(scales[0])
        grid, _ = self._grid(scales[0], self.place.shape, self.said)
        return self.name, Parts(self.name, dtype, self.place.shape, scales[0], grid, byte_scales)

    def nvfp4(self) -> tuple[str, Parts]:
        shape = self._nibbles()
        divides = self.name.endswith("weight_packed")
        scale, factor = self._key("weight_scale"), self._key("weight_global_scale" if divides else "weight_scale_2")
        if self.stem + "pre_quant_scale" in self.places:
            remedy = "It scales the inputs of the layer: the dense weight alone is another layer."
            refuse(self.where, "a weight without pre_quant_scale", "one", remedy)
        if self.places[scale].dtype != torch.float8_e4m3fn or len(self.places[scale].shape) != len(shape):
            got = f"{dtype_name(self.places[scale].dtype)} of shape {shape_text(self.places[scale].shape)}"
            remedy = "Scales of one dimension are in the order of a kernel: export them without."
            refuse(f"{self.where}: {shown(scale)}", "a grid of float8_e4m3fn", got, remedy)
        if self.places[factor].dtype != torch.float32 or math.prod(self.places[factor].shape) != 1:
            got = f"{dtype_name(self.places[factor].dtype)} of shape {shape_text(self.places[factor].shape)}"
            refuse(f"{self.where}: {shown(factor)}", "one float32", got, "Others are not read.")
        grid, _ = self._grid(scale, shape, self.said)
        parts = Parts(self.name, "float4_e2m1", shape, scale, grid, factor=factor, divides=divides)
        return self.stem + "weight", parts

    def mxfp4(self) -> tuple[str, Parts]:
        shape = self._nibbles()
        scale = self._key("weight_scale" if self.name.endswith("weight_packed") else "scale")
        is_bytes = self.places[scale].dtype == torch.uint8
        if not is_bytes and self.places[scale].dtype != torch.float8_e8m0fnu:
            got = dtype_name(self.places[scale].dtype)
            refuse(f"{self.where}: {shown(scale)}", "exponents in bytes", got, CONTRADICTION)
        grid, _ = self._grid(scale, shape, self.said)
        return self.stem + "weight", Parts(self.name, "float4_e2m1", shape, scale, grid, is_bytes)

    def packed(self) -> tuple[str, Parts]:
        shape_key, scale = self._key("weight_shape"), self._key("weight_scale")
        shape = self._stated_shape(shape_key)
        self._check_scale(scale)
        fitting = [said for said in self.said if self.place.shape[-1] == -(-shape[-1] * said.bits // 32)]
        if not fitting:
            what = f"rows of {shape[-1]} values of {' or '.join(str(said.bits) for said in self.said)} bits in int32"
            remedy = "Widths that do not divide 32, packed by compressed-tensors before 0.17, are not read."
            refuse(self.where, what, f"{self.place.shape[-1]} words", remedy)
        grid, said = self._grid(scale, shape, fitting)
        zero, others = self.stem + "weight_zero_point", [shape_key]
        if self.stem + "weight_g_idx" in self.places:
            others.append(self.stem + "weight_g_idx")
            if bool((self.shards.tensor(others[-1]) != -1).any()):
                refuse(self.where, "columns in the order of their groups", "weight_g_idx", "Others are not read yet.")
        if zero in self.places:
            words = (-(-shape[0] * said.bits // 32), grid.shape[-1])
            if self.places[zero].dtype != torch.int32 or self.places[zero].shape != words:
                got = f"{dtype_name(self.places[zero].dtype)} of shape {shape_text(self.places[zero].shape)}"
                refuse(f"{self.where}: {shown(zero)}", f"int32 of shape {shape_text(words)}", got, CONTRADICTION)
        parts = Parts(
            self.name, f"int{said.bits}_excess", shape, scale, grid, zero=zero if zero in self.places else None,
            zero_bits=said.bits, others=tuple(others),
        )  # fmt: skip
        return self.stem + "weight", parts

    def int8(self) -> tuple[str, Parts]:
        scale, zero = self._key("weight_scale"), self.stem + "weight_zero_point"
        self._check_scale(scale)
        grid, _ = self._grid(scale, self.place.shape, self.said)
        if zero in self.places and (
            self.places[zero].dtype != torch.int8 or math.prod(self.places[zero].shape) != math.prod(grid.shape)
        ):
            got = f"{dtype_name(self.places[zero].dtype)} of shape {shape_text(self.places[zero].shape)}"
            refuse(f"{self.where}: {shown(zero)}", "int8 like the scales", got, CONTRADICTION)
        zero_key = zero if zero in self.places else None
        return self.name, Parts(self.name, "int8", self.place.shape, scale, grid, zero=zero_key)

    def _key(self, last: str) -> str:
        if self.stem + last not in self.places:
            refuse(self.where, f"{shown(self.stem + last)} beside it", "none", "Open the folder with all shards.")
        return self.stem + last

    def _nibbles(self) -> tuple[int, ...]:
        shape = self.place.shape
        if len(shape) < 2:
            refuse(self.where, "rows of bytes", shape_text(shape), CONTRADICTION)
        return (*shape[:-1], 2 * shape[-1])

    def _stated_shape(self, key: str) -> tuple[int, ...]:
        place = self.places[key]
        stated = self.shards.tensor(key).tolist() if place.shape == (2,) and not place.dtype.is_floating_point else []
        if len(self.place.shape) != 2 or not all(map(is_size, stated)) or stated[:1] != [self.place.shape[0]]:
            got = f"{shown(stated)} for words of shape {shape_text(self.place.shape)}"
            refuse(f"{self.where}: {shown(key)}", "two sizes, rows and columns", got, CONTRADICTION)
        return tuple(stated)

    def _check_scale(self, key: str) -> bool:
        """Whether scales are exponents in bytes; refuse other integers."""
        dtype = self.places[key].dtype
        if dtype == torch.uint8:
            if not any(said.byte_scales for said in self.said):
                what = f"scales that are floats, as {self.config.where} says nothing of exponents"
                refuse(f"{self.where}: {shown(key)}", what, "uint8", CONTRADICTION)
            return True
        if dtype not in SCALE_DTYPES or dtype == torch.float8_e4m3fn:
            what = f"scales of {[dtype_name(dtype) for dtype in SCALE_DTYPES[:-1]]}"
            refuse(f"{self.where}: {shown(key)}", what, dtype_name(dtype), "Other scales are not read.")
        return False

    def _grid(self, key: str, shape: tuple[int, ...], said: list[Said]) -> tuple[Grid, Said]:
        """The size of blocks comes from the config and never from the shapes."""
        scale = self.places[key].shape
        fitting = {(grid, one.bits): one for one in said if (grid := _fit(one.layout, shape, scale)) is not None}
        if len(fitting) != 1:
            self._refuse_grid(key, shape, said, bool(fitting))
        ((grid, _), one), *_ = fitting.items()
        return grid, one

    def _refuse_grid(self, key: str, shape: tuple[int, ...], said: list[Said], several: bool) -> NoReturn:
        layouts = dict.fromkeys(str(one.layout) for one in said)
        what = f"scales for {shape_text(shape)} codes, {' or '.join(layouts)}"
        what += f", as {self.config.where} says" if self.config.method else ""
        got, remedy = f"{shown(key)} of shape {shape_text(self.places[key].shape)}", CONTRADICTION
        if several:
            got, remedy = f"{got}, which fits several", "Which of them holds, neither config nor shapes say."
        elif not self.config.method:
            remedy = "State the size of blocks in config.json beside the weights, as quantization_config."
        refuse(self.where, what, got, remedy)


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
