"""What a training checkpoint holds beside weights: optimizer state, counters, scores, settings.

They are told by where they stand. A mapping with ``state`` and ``param_groups`` is what ``torch.optim`` saves. In a
mapping that has the weights of a model in one entry, an entry of its own that holds none is a record: there is no
tensor in it that could be one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["BESIDE", "COUNTER", "OPTIMIZER", "Entry", "could_be_weight", "is_optimizer", "records_among"]

OPTIMIZER = "state of an optimizer, no weight"
BESIDE = "beside the weights in the checkpoint, no weight"
COUNTER = "how many models torch's AveragedModel has averaged, no weight"


@dataclass(frozen=True)
class Entry:
    """One entry of a mapping: its name, whether it is a mapping or model itself, whether a weight is in it."""

    name: str
    nested: bool
    has_weight: bool


def is_optimizer(entries: Mapping[object, object]) -> bool:
    """Whether a mapping is what an optimizer saves."""
    return "state" in entries and "param_groups" in entries


def could_be_weight(shape: Sequence[int] | None, dtype: str) -> bool:
    """Whether a tensor with torch's name of its dtype could be a weight: no number, no list of integers."""
    if shape is None or 0 in shape:
        return False
    if dtype.startswith(("float", "bfloat", "complex")):
        return any(size > 1 for size in shape)
    return dtype.startswith("q") or len(shape) > 1


def records_among(entries: Iterable[Entry]) -> list[Entry]:
    """The entries of one mapping that hold no weight, where another one holds a model's."""
    listed = list(entries)
    if not any(entry.nested and entry.has_weight for entry in listed):
        return []
    return [entry for entry in listed if not entry.has_weight and (entry.nested or _is_plain(entry.name))]


def _is_plain(name: str) -> bool:
    """Whether a name stands for itself: no key of a state dict, and no half of the quantization of an output."""
    return "." not in name and not name.rstrip("_0123456789").endswith(("scale", "zero_point"))
