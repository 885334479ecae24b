"""How things are called in reports and messages."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["class_name", "clip", "dtype_name", "error_line", "join", "percent_digits", "shape_text", "strict_json"]

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


def dtype_name(dtype: torch.dtype) -> str:
    """Torch's name of a dtype, without ``torch.``: ``qint8``, ``float32``, ..."""
    return str(dtype).removeprefix("torch.")


def shape_text(shape: Iterable[int]) -> str:
    """Word a shape: ``64x3x3x3``; ``scalar`` for one number without dimensions."""
    return "x".join(map(str, shape)) or "scalar"


def percent_digits(share: float | None) -> str:
    """A share, 0 to 1, in percent for a column of numbers: two digits behind the point; empty if it is not known."""
    return "" if share is None else f"{100 * share:.2f}"


def clip(text: str, width: int, mark: str = "…") -> str:
    """The text in at most ``width`` characters; ``mark`` stands at its end where something is left out."""
    return text if len(text) <= width else text[: width - len(mark)] + mark


def error_line(error: BaseException) -> str:
    """An error that somebody else raised, as a value in a message: its class and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def strict_json(value: Any, indent: int | None = 2) -> str:
    """The value as JSON that every reader takes: infinities and NaN become strings."""
    return json.dumps(_jsonable(value), indent=indent, allow_nan=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value
