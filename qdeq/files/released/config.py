"""What the config beside a released checkpoint says of its quantization: the method, and how scales may lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeq.files.safetensors.shards import read_json
from qdeq.files.untrusted import is_size, refuse, shown

__all__ = [
    "CONFIG_FILE",
    "QUANTIZATION_FILES",
    "Config",
    "Layout",
    "Said",
    "quantization_sections",
    "read_config",
]

CONFIG_FILE = "config.json"
# Quantization alone, without the model: they go with it.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json")
_SECTIONS = ("quantization_config", "compression_config")
_AGREE = "Config and tensors have to agree: get the config that belongs to the checkpoint."
# compressed-tensors' name of a format -> kind of weights, type and bits of its values; no bits: any.
_FORMATS: dict[str, tuple[str, str, int | None]] = {
    "float-quantized": ("float8", "float", 8),
    "mxfp8-quantized": ("float8", "float", 8),
    "nvfp4-pack-quantized": ("nvfp4", "float", 4),
    "mxfp4-pack-quantized": ("mxfp4", "float", 4),
    "pack-quantized": ("packed", "int", None),
    "int-quantized": ("int8", "int", None),
}
_CODES = {"e4m3": "float8_e4m3fn", "e4m3fn": "float8_e4m3fn", "float8_e4m3fn": "float8_e4m3fn", "e5m2": "float8_e5m2"}
_CODES |= {"float8_e5m2": "float8_e5m2"}


@dataclass(frozen=True)
class Layout:
    """How the scales of a weight may lie: one for ``rows`` x ``cols`` values, 0 for all of a dimension."""

    rows: int
    cols: int

    def __str__(self) -> str:
        if self.rows == self.cols == 0:
            return "one for each matrix"
        return "one for each row" if (self.rows, self.cols) == (1, 0) else f"one for {self.rows} x {self.cols} values"


TENSOR, CHANNEL = Layout(0, 0), Layout(1, 0)


@dataclass(frozen=True)
class Said:
    """What a config says of some weights.

    Attributes:
        kind: "float8", "nvfp4", "mxfp4", "packed" (integers of ``bits`` in words) or "int8" (integers in bytes).
        layout: how scales lie.
        bits: of a value.
        codes: torch's name of the dtype of the codes; None where nothing is said.
        byte_scales: scales of one byte are exponents, 2^(byte - 127).

    """

    kind: str
    layout: Layout
    bits: int = 8
    codes: str | None = None
    byte_scales: bool = False


NVFP4, MXFP4 = Said("nvfp4", Layout(1, 16), 4), Said("mxfp4", Layout(1, 32), 4, byte_scales=True)


@dataclass(frozen=True)
class Config:
    """What is said of the quantization.

    Attributes:
        where: the file that says it, for errors.
        method: ``quant_method``; empty where nothing is said.
        weights: what is said of the weights, each differing from the others; where no method is said, what shapes and
            keys tell on their own.
        left_out: names of modules that are said not to be quantized.

    """

    where: str
    method: str = ""
    weights: tuple[Said, ...] = (Said("float8", TENSOR), Said("float8", CHANNEL), NVFP4)
    left_out: tuple[str, ...] = field(default=(), repr=False)

    def of_kind(self, kind: str) -> list[Said]:
        """What is said of weights of a kind."""
        return [said for said in self.weights if said.kind == kind]


def quantization_sections(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Give each part of a model's config and the key in it that describes quantization."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        yield from ((part, key) for key in _SECTIONS if part.get(key) is not None)


def read_config(folder: Path) -> Config:
    """Read what the files of a folder say.

    Raises:
        QdeqValueError: a file that is no JSON object, a method that is not read, or one that contradicts itself.

    """
    path = folder / CONFIG_FILE
    found: list[tuple[str, Any]] = []
    if path.is_file():
        config = read_json(os.fspath(path))
        found = [(f"{path}: {key}", part[key]) for part, key in quantization_sections(config)]
    if not found:
        for name in QUANTIZATION_FILES:
            if (folder / name).is_file():
                found.append((os.fspath(folder / name), read_json(os.fspath(folder / name))))
    if not found:
        return Config(os.fspath(path) if path.is_file() else os.fspath(folder))
    where, section = found[0]
    for other, text in found[1:]:
        if text != section:
            refuse(other, "the same as elsewhere in the config", "another quantization", _AGREE)
    return _parse(where, section)


def _parse(where: str, section: Any) -> Config:
    if not isinstance(section, dict):
        refuse(where, "an object", shown(section))
    if "quantization" in section and isinstance(section["quantization"], dict):
        section = {"quant_method": "modelopt", **section["quantization"]}
    method = section.get("quant_method") or ("compressed-tensors" if "config_groups" in section else "gptq")
    parse = _METHODS.get(method) if isinstance(method, str) else None
    if parse is None:
        remedy = "Other methods are not read yet; nothing was written."
        refuse(f"{where}: quant_method", f"one of {sorted(_METHODS)}", shown(method), remedy)
    return parse(where, section)


def _names(where: str, section: Mapping[str, Any], *keys: str) -> tuple[str, ...]:
    names: list[str] = []
    for key in keys:
        listed = section.get(key) or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            refuse(f"{where}: {key}", "a list of names", shown(listed))
        names += listed
    return tuple(names)


def _sizes(where: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(is_size(size) and size > 0 for size in value):
        refuse(where, "two sizes, rows and columns", shown(value))
    return value[0], value[1]


def _fp8(where: str, section: Mapping[str, Any]) -> Config:
    codes, block = section.get("fmt"), section.get("weight_block_size")
    if codes is not None and codes not in _CODES:
        refuse(f"{where}: fmt", f"one of {sorted(_CODES)}", shown(codes), "Other codes are not read.")
    experts = section.get("expert_dtype")
    if experts not in (None, "fp8", "fp4"):
        refuse(f"{where}: expert_dtype", "fp8 or fp4", shown(experts), "Experts of other types are not read.")
    layouts = (TENSOR, CHANNEL) if block is None else (Layout(*_sizes(f"{where}: weight_block_size", block)),)
    left_out = _names(where, section, "modules_to_not_convert", "ignored_layers")
    name, ue8m0 = _CODES[codes] if codes else None, section.get("scale_fmt") == "ue8m0"
    weights = [Said("float8", layout, 8, name, ue8m0) for layout in layouts]
    return Config(where, "fp8", (*weights, *([MXFP4] if experts == "fp4" else [])), left_out)


def _fbgemm_fp8(where: str, section: Mapping[str, Any]) -> Config:
    left_out = _names(where, section, "modules_to_not_convert")
    return Config(where, "fbgemm_fp8", (Said("float8", CHANNEL, 8, "float8_e4m3fn"),), left_out)


_ALGORITHMS = {
    "FP8": Said("float8", TENSOR, 8, "float8_e4m3fn"),
    "FP8_PER_CHANNEL_PER_TOKEN": Said("float8", CHANNEL, 8, "float8_e4m3fn"),
    "NVFP4": NVFP4,
}


def _modelopt(where: str, section: Mapping[str, Any]) -> Config:
    algorithm, layers = section.get("quant_algo"), section.get("quantized_layers")
    named = [algorithm]
    if algorithm == "MIXED_PRECISION":
        named = [layer.get("quant_algo") if isinstance(layer, dict) else layer for layer in (layers or {}).values()]
    for name in named or [algorithm]:
        if not isinstance(name, str) or name not in _ALGORITHMS:
            refuse(f"{where}: quant_algo", f"one of {sorted(_ALGORITHMS)}", shown(name), "Others are not read yet.")
    weights = tuple(dict.fromkeys(_ALGORITHMS[name] for name in named if isinstance(name, str)))
    return Config(where, "modelopt", weights, _names(where, section, "ignore", "exclude_modules"))


def _compressed_tensors(where: str, section: Mapping[str, Any]) -> Config:
    if section.get("transform_config"):
        got, remedy = "a transform_config", "Its rotations run in the model: the dense weights alone are another model."
        refuse(where, "weights alone", got, remedy)
    if (section.get("sparsity_config") or {}) not in ({}, {"format": "dense"}):
        refuse(f"{where}: sparsity_config", "none", shown(section["sparsity_config"]), "Sparse layouts are not read.")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        refuse(f"{where}: config_groups", "an object with groups", shown(groups))
    found: dict[Said, None] = {}
    for name, group in groups.items():
        inside = f"{where}: config_groups: {shown(name)}"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            refuse(inside, "weights and targets", shown(group))
        found[_group(inside, group.get("format") or section.get("format"), weights)] = None
    return Config(where, "compressed-tensors", tuple(found), _names(where, section, "ignore"))


def _group(where: str, form: object, weights: Mapping[str, Any]) -> Said:
    of_type, bits = weights.get("type"), weights.get("num_bits")
    if form == "naive-quantized":
        form = "int-quantized" if of_type == "int" else "float-quantized"
    kind, needed, width = _FORMATS.get(form if isinstance(form, str) else "", ("", "", None))
    if not kind or of_type != needed or not is_size(bits) or not 1 <= bits <= 8 or bits != (width or bits):
        got = f"{shown(form)} with {shown(bits)} bits of type {shown(of_type)}"
        refuse(where, f"one of {sorted(_FORMATS)} with its type and bits", got, "Others are not read.")
    if weights.get("actorder") in ("group", "dynamic", True):
        refuse(f"{where}: actorder", "none, weight or static", shown(weights["actorder"]), "Others are not read yet.")
    if kind in ("nvfp4", "mxfp4"):
        return NVFP4 if kind == "nvfp4" else MXFP4
    byte_scales = str(weights.get("scale_dtype")).removeprefix("torch.") in ("uint8", "float8_e8m0fnu")
    return Said(kind, _layout(where, weights), bits, "float8_e4m3fn" if kind == "float8" else None, byte_scales)


def _layout(where: str, weights: Mapping[str, Any]) -> Layout:
    strategy = weights.get("strategy")
    if strategy == "block":
        return Layout(*_sizes(f"{where}: block_structure", weights.get("block_structure")))
    if strategy == "group":
        size = weights.get("group_size")
        if not is_size(size) or size == 0:
            refuse(f"{where}: group_size", "a size", shown(size))
        return Layout(1, size)
    if strategy not in ("tensor", "channel"):
        remedy = "Other strategies are not read."
        refuse(f"{where}: strategy", "tensor, channel, group or block", shown(strategy), remedy)
    return TENSOR if strategy == "tensor" else CHANNEL


_METHODS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed_tensors,
}
