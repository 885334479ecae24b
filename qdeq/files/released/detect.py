"""Which tensors of a released checkpoint make a weight together: the keys decide, and the config has to agree.

==================================================  ===============================================================
keys                                                a weight of
==================================================  ===============================================================
``M.weight`` FP8, ``M.weight_scale_inv``            FP8 in blocks, of the size that the config states; a factor
``M.weight`` FP8, ``M.weight_scale``                FP8, a scale for the matrix, for each row, or for blocks
``M.weight`` FP8, ``M.scale`` or ``M.qscale_weight``  as the first two, by other names
``X`` FP8 and ``X_scale_inv``, three dimensions     experts one behind another; no block holds values of two
``M.weight_packed`` U8, ``M.weight_global_scale``   NVFP4; the global scale is a divisor
``M.weight`` U8, ``M.weight_scale_2``               NVFP4; the second scale is a factor
``M.weight_packed`` U8, ``M.weight_scale`` U8       MXFP4; scales are exponents
``M.weight`` I8, ``M.scale`` F8_E8M0                MXFP4, by other names
``M.weight_packed`` I32, ``M.weight_shape``         integers of 1 to 8 bits, packed along rows
``M.weight`` I8, ``M.weight_scale``                 integers in bytes
==================================================  ===============================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from qdeq.files.released.config import Config
from qdeq.files.released.parts import CONTRADICTION, SCALE_NAMES, Parts, float8_scales, parts_of
from qdeq.files.safetensors.format import Place
from qdeq.files.safetensors.shards import Shards
from qdeq.files.untrusted import refuse, shown
from qdeq.weights.codes import FLOAT8_TYPES
from qdeq.words import dtype_name

__all__ = ["Found", "find_weights", "looks_released"]

# The end of an integer tensor's name, the end of another's that has to be beside it -> kinds that are not read.
_OTHER_KINDS = {
    ("qweight", "scales"): "GPTQ or AWQ weights",
    ("weight", "SCB"): "bitsandbytes int8 weights",
    ("weight", "weight.absmax"): "bitsandbytes 4-bit weights",
    ("_blocks", "_scales"): "MXFP4 weights of transposed experts",
}
_OF_ACTIVATIONS = ("input_scale", "input_scale_ub", "input_global_scale", "input_zero_point", "output_scale",
                   "activation_scale", "qscale_act")  # fmt: skip
_OF_CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale")
_INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.uint32)
_USED = "scales and the like, used for the weights beside them"


@dataclass
class Found:
    """What a checkpoint holds.

    Attributes:
        weights: dense name -> the tensors that make it.
        dropped: key of a tensor that is no weight -> why.
        notes: dense name -> a remark.

    """

    weights: dict[str, Parts] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def looks_released(places: Mapping[str, Place]) -> bool:
    """Whether tensors hold weights that only scales beside them explain, by their names and dtypes."""
    return any(
        _other_kind(name, places) or (kind := _kind_of(name, places)) in ("nvfp4", "mxfp4", "packed")
        or (kind == "float8" and float8_scales(name, places))
        for name in places
    )  # fmt: skip


def _kind_of(name: str, places: Mapping[str, Place]) -> str | None:
    """The kind of weight whose codes a tensor holds, by its name, dtype and neighbours; None if it holds none."""
    dtype = places[name].dtype
    if name.endswith("weight_packed"):
        stem = name.removesuffix("weight_packed")
        if dtype == torch.int32:
            return "packed"
        return "nvfp4" if stem + "weight_global_scale" in places else "mxfp4" if dtype == torch.uint8 else None
    if dtype in FLOAT8_TYPES:
        stem = name.removesuffix("weight_scale")
        of_nibbles = stem != name and (stem + "weight_packed" in places or stem + "weight_scale_2" in places)
        return None if of_nibbles else "float8"
    stem = name.removesuffix("weight")
    if stem == name:
        return None
    if dtype == torch.uint8 and stem + "weight_scale_2" in places:
        return "nvfp4"
    if dtype == torch.int8 and stem + "scale" in places and places[stem + "scale"].dtype == torch.float8_e8m0fnu:
        return "mxfp4"
    return "int8" if dtype == torch.int8 and stem + "weight_scale" in places else None


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


def find_weights(shards: Shards, config: Config) -> Found:
    """Find every weight, and what belongs to none.

    Args:
        shards: all tensors; those that say a shape are read.
        config: what is said of them.

    Raises:
        QdeqValueError: names the tensor that is of a kind that is not read, lacks its scale, has one that the config
            does not know, or two; or a config that says more than the tensors do.

    """
    places = shards.places
    for name in places:
        if kind := _other_kind(name, places):
            what, remedy = "weights of a kind that is read", "This kind is not read yet; nothing was written."
            refuse(f"{shards.path}: {shown(name)}", what, kind, remedy)
    found = Found()
    for name in places:
        kind = _kind_of(name, places)
        if kind is None:
            continue
        dense, parts = parts_of(kind, name, shards, config)
        if dense in found.weights or (dense != name and dense in places):
            refuse(f"{shards.path}: {shown(dense)}", "one weight of this name", "two", CONTRADICTION)
        found.weights[dense] = parts
        found.dropped |= dict.fromkeys(parts.beside, _USED)
        if dense.removesuffix(".weight") in config.left_out:
            found.notes[dense] = f"{config.where} leaves it out, but it has a scale: dequantized"
    if config.method and not found.weights:
        refuse(config.where, f"weights that are quantized as {config.method} says", "none", CONTRADICTION)
    _judge_the_rest(shards.path, places, found)
    return found


def _judge_the_rest(where: str, places: Mapping[str, Place], found: Found) -> None:
    codes = {parts.codes for parts in found.weights.values()}
    modules = {name.rpartition(".")[0] for name in found.weights}
    for name, place in places.items():
        if name in codes or name in found.dropped:
            continue
        module, _, last = name.rpartition(".")
        owner = name.removesuffix("_inv").removesuffix("_scale")
        if (last in _OF_ACTIVATIONS and module in modules) or (last in _OF_CACHE and math.prod(place.shape) == 1):
            found.dropped[name] = "scale of activations"
        elif last.endswith(SCALE_NAMES) and owner in places:
            got = f"{dtype_name(places[owner].dtype)} beside {shown(name)}"
            refuse(f"{where}: {shown(owner)}", "codes where there are scales", got, CONTRADICTION)
        elif last == "weight" and place.dtype in _INTEGERS:
            got = f"{dtype_name(place.dtype)} without scales that explain it"
            refuse(f"{where}: {shown(name)}", "a float weight, or codes with scales", got, "It is not read.")
        elif last.endswith("_scale_inv") or last in ("weight_global_scale", "weight_scale_2", "weight_scale"):
            refuse(f"{where}: {shown(name)}", "a weight beside the scales", "none", CONTRADICTION)
