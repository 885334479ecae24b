"""What else lies in the folder of a released checkpoint, and what becomes of it in a dense one."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdeq.files.released.config import CONFIG_FILE, QUANTIZATION_FILES, quantization_sections
from qdeq.files.safetensors.shards import naming_read_errors, read_json

__all__ = ["OtherFiles", "dense_config", "other_files"]

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx")
_DTYPE_KEYS = ("torch_dtype", "dtype")


@dataclass
class OtherFiles:
    """Files that hold none of the weights: paths below the folder.

    Attributes:
        copied: path -> bytes.
        left_out: path -> why.

    """

    copied: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def other_files(folder: Path, weights: Collection[str]) -> OtherFiles:
    """List what lies in a folder beside its config and the files called ``weights``."""
    found = OtherFiles()
    with naming_read_errors(os.fspath(folder)):
        for root, folders, names in os.walk(folder):
            below = os.path.relpath(root, folder)
            for name in sorted(folders):
                path = os.path.normpath(os.path.join(below, name))
                if name.startswith(".") or os.path.islink(os.path.join(root, name)):
                    folders.remove(name)
                    found.left_out[path] = "hidden folder" if name.startswith(".") else "link to a folder"
            folders.sort()
            for name in sorted(names):
                path = os.path.normpath(os.path.join(below, name))
                if path != CONFIG_FILE and path not in weights:
                    _sort_in(found, path, Path(root, name))
    return found


def _sort_in(found: OtherFiles, path: str, file: Path) -> None:
    if path in QUANTIZATION_FILES:
        found.left_out[path] = "describes the quantization"
    elif not file.is_file():
        found.left_out[path] = "no file"
    elif path.endswith(_WEIGHTS) or file.name.startswith("pytorch_model"):
        found.left_out[path] = "holds other weights"
    else:
        found.copied[path] = file.stat().st_size


def dense_config(folder: Path, dtype: str) -> bytes | None:
    """Return the text of config.json for the dense checkpoint; None where the folder has none.

    It says nothing of quantization, and ``dtype`` where it named a dtype.
    """
    if not (folder / CONFIG_FILE).is_file():
        return None
    config: dict[str, Any] = copy.deepcopy(read_json(os.fspath(folder / CONFIG_FILE)))
    for part, key in list(quantization_sections(config)):
        del part[key]
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        part.pop("expert_dtype", None)
        for key in _DTYPE_KEYS:
            if key in part:
                part[key] = dtype
    return json.dumps(config, indent=2, ensure_ascii=False).encode() + b"\n"
