"""How things are called in reports and messages."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["class_name", "dtype_name", "join", "jsonable"]

# Where torch keeps its classes, and how a user imports them: without the file.
_TORCH = ("torch.nn.", "torch.ao.nn.")


def join(path: str, name: str) -> str:
    """The dotted name of ``name`` in the module at ``path`` (empty for the model itself)."""
    return f"{path}.{name}" if path else name


def class_name(obj: object) -> str:
    """The class of ``obj`` as a user would import it: torch's without the ``modules.<file>`` of their package."""
    kind = type(obj)
    module = kind.__module__
    if module.startswith(_TORCH):
        module = module.partition(".modules.")[0]
    return f"{module}.{kind.__qualname__}"


def jsonable(value: Any) -> Any:
    """The value as strict JSON takes it: keys are strings, tuples are lists, infinities and NaN are strings."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name of a dtype, without ``torch.``: ``qint8``, ``float32``, ..."""
    return str(dtype).removeprefix("torch.")
