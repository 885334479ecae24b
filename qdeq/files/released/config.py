"""What the config beside a released checkpoint says of its quantization: the method, and how scales may lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeq.files.safetensors.shards import read_json
from qdeq.files.untrusted import is_size, refuse, shown

__all__ = ["CONFIG_FILE", "QUANTIZATION_FILES", "Config", "Layout", "no_config", "quantization_sections", "read_config"]

CONFIG_FILE = "config.json"
# Quantization alone, without the model: they go with it.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json")
_SECTIONS = ("quantization_config", "compression_config")
_AGREE = "Config and tensors have to agree: get the config that belongs to the checkpoint."
_FORMATS = {"float-quantized", "naive-quantized", "mxfp8-quantized"}
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
class Config:
    """What is said of the quantization.

    Attributes:
        where: the file that says it, for errors.
        method: ``quant_method``; empty where nothing is said.
        layouts: how scales may lie.
        codes: torch's name of the dtype of the codes; None where nothing is said.
        byte_scales: scales of one byte are exponents, 2^(byte - 127).
        left_out: names, or ``re:`` and a pattern, of modules that are said not to be quantized.

    """

    where: str
    method: str = ""
    layouts: tuple[Layout, ...] = (TENSOR, CHANNEL)
    codes: str | None = None
    byte_scales: bool = False
    left_out: tuple[str, ...] = field(default=(), repr=False)


def no_config(where: str) -> Config:
    """Return what holds where nothing is said: one scale for a matrix or for a row, which their shapes tell."""
    return Config(where)


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
        return no_config(os.fspath(path) if path.is_file() else os.fspath(folder))
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
    if section.get("expert_dtype") not in (None, "fp8"):
        remedy = "Experts of other types are not read yet."
        refuse(f"{where}: expert_dtype", "fp8", shown(section["expert_dtype"]), remedy)
    layouts = (TENSOR, CHANNEL) if block is None else (Layout(*_sizes(f"{where}: weight_block_size", block)),)
    left_out = _names(where, section, "modules_to_not_convert", "ignored_layers")
    ue8m0 = section.get("scale_fmt") == "ue8m0"
    return Config(where, "fp8", layouts, _CODES[codes] if codes else None, ue8m0, left_out)


def _fbgemm_fp8(where: str, section: Mapping[str, Any]) -> Config:
    left_out = _names(where, section, "modules_to_not_convert")
    return Config(where, "fbgemm_fp8", (CHANNEL,), "float8_e4m3fn", left_out=left_out)


def _modelopt(where: str, section: Mapping[str, Any]) -> Config:
    algorithm = section.get("quant_algo")
    if algorithm not in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        refuse(f"{where}: quant_algo", "FP8 or FP8_PER_CHANNEL_PER_TOKEN", shown(algorithm), "Others are not read yet.")
    layouts = (TENSOR,) if algorithm == "FP8" else (CHANNEL,)
    left_out = _names(where, section, "ignore", "exclude_modules")
    return Config(where, "modelopt", layouts, "float8_e4m3fn", left_out=left_out)


def _compressed_tensors(where: str, section: Mapping[str, Any]) -> Config:
    if section.get("transform_config"):
        got, remedy = "a transform_config", "Its rotations run in the model: the dense weights alone are another model."
        refuse(where, "weights alone", got, remedy)
    if (section.get("sparsity_config") or {}) not in ({}, {"format": "dense"}):
        refuse(f"{where}: sparsity_config", "none", shown(section["sparsity_config"]), "Sparse layouts are not read.")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        refuse(f"{where}: config_groups", "an object with groups", shown(groups))
    layouts: dict[Layout, None] = {}
    byte_scales = False
    for name, group in groups.items():
        inside = f"{where}: config_groups: {shown(name)}"
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict):
            refuse(inside, "weights and targets", shown(group))
        form = group.get("format") or section.get("format")
        if form not in _FORMATS or weights.get("type") != "float" or weights.get("num_bits") != 8:
            got = f"{shown(form)} with {shown(weights.get('num_bits'))} bits of type {shown(weights.get('type'))}"
            refuse(inside, f"floats of 8 bits as {sorted(_FORMATS)}", got, "Others are not read yet.")
        layouts[_layout(inside, weights)] = None
        byte_scales |= str(weights.get("scale_dtype")).removeprefix("torch.") in ("uint8", "float8_e8m0fnu")
    left_out = _names(where, section, "ignore")
    return Config(where, "compressed-tensors", tuple(layouts), "float8_e4m3fn", byte_scales, left_out)


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
