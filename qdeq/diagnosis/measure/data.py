"""Data as people have it: what of it are a model's arguments, what are labels, and how it is cut into batches."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected, refuse
from qdeq.words import class_name, dtype_name

__all__ = ["Batch", "batches"]

# Data is run in parts of this many samples, and about this many bytes: the layers' outputs of one part stay small.
BATCH_SAMPLES = 64
BATCH_BYTES = 4 << 20
# Names under which dicts and files hold labels; a forward that requires a parameter of this name gets it.
LABEL_NAMES = ("labels", "label", "targets", "target", "y")
# numpy's names of arrays that were saved without one.
_NUMBERED = re.compile(r"arr_\d+")
_WHOLE_NUMBERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Batch:
    """The arguments of one call, and labels where the data has them."""

    args: tuple[Any, ...]
    labels: Tensor | None = None  # int64 (n,)
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of samples: the length of the first tensor."""
        first = next(self._tensors(), None)
        return 1 if first is None or first.ndim == 0 else len(first)

    def _tensors(self) -> Iterator[Tensor]:
        def within(value: Any) -> Iterator[Tensor]:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, tuple | list):
                for item in value:
                    yield from within(item)

        yield from within((*self.args, *self.kwargs.values()))

    @property
    def can_be_cut(self) -> bool:
        """Whether every argument is a number, or a tensor of as many samples as the first one.

        States of a recurrent network, which lie in tuples, hold their samples elsewhere.
        """
        values = (*self.args, *self.kwargs.values())
        flat = all(isinstance(value, Tensor | int | float | None) for value in values)
        return flat and all(tensor.ndim and len(tensor) == len(self) for tensor in self._tensors())

    def part(self, start: int, end: int) -> Batch:
        """Return some of the samples; all of them where the batch cannot be cut."""
        if not self.can_be_cut or (start == 0 and end >= len(self)):
            return self
        cut: Any = lambda value: value[start:end] if isinstance(value, Tensor) else value  # noqa: E731
        args, kwargs = tuple(map(cut, self.args)), {name: cut(value) for name, value in self.kwargs.items()}
        return Batch(args, cut(self.labels), kwargs)

    def parts(self) -> Iterator[Batch]:
        """Cut into what is run at once."""
        size, bytes_ = max(1, len(self)), sum(tensor.numel() * tensor.element_size() for tensor in self._tensors())
        step = max(1, min(BATCH_SAMPLES, BATCH_BYTES * size // max(1, bytes_)))
        for start in range(0, len(self), step if self.can_be_cut else size):
            yield self.part(start, start + step)

    def words(self) -> str:
        """Shapes and dtypes of the arguments, for messages."""
        return (
            ", ".join(f"{tuple(tensor.shape)} {dtype_name(tensor.dtype)}" for tensor in self._tensors()) or "no tensor"
        )


@dataclass(frozen=True)
class _Takes:
    """What a forward takes."""

    need: int  # positional arguments that it requires
    most: float  # positional arguments that it takes at most
    required: frozenset[str]  # names of all that it requires
    names: frozenset[str] | None  # names that it takes; None where it takes any

    @classmethod
    def of(cls, model: nn.Module) -> _Takes:
        try:
            parameters = list(inspect.signature(model.forward).parameters.values())
        except (TypeError, ValueError):  # not written in Python
            return cls(1, float("inf"), frozenset(), None)
        kinds = inspect.Parameter
        places = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        any_place = any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
        any_name = any(p.kind is kinds.VAR_KEYWORD for p in parameters)
        required = [
            p for p in parameters if p.default is p.empty and p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        ]
        need = sum(p in places for p in required)
        most = float("inf") if any_place else len(places)
        names = None if any_name else frozenset(p.name for p in parameters)
        return cls(need, most, frozenset(p.name for p in required), names)

    def takes(self, count: int) -> bool:
        return self.need <= count <= self.most

    def words(self) -> str:
        if self.need == self.most:
            return str(self.need)
        return f"{self.need} or more" if self.most == float("inf") else f"{self.need} to {int(self.most)}"


def batches(data: object, model: nn.Module) -> Iterator[Batch]:
    """Read data for a model: one batch, or an iterable of batches, such as a list or a DataLoader.

    A batch is a tensor, a tuple of the forward's arguments or a dict of them by name, with or without labels. The
    last of a tuple is taken for labels where it is of whole numbers, (n,), and the forward can do without it; further
    one-dimensional targets of floats are left out. In a dict labels are what is called so and not required.

    Raises:
        QdeqTypeError: something else.
        QdeqValueError: no samples, labels of another length, or arguments that the forward does not take.

    """
    takes, count = _Takes.of(model), 0
    for item in _items(data, takes):
        batch = _batch(item, takes)
        if any(value.ndim == 0 for value in batch.args[:1] if isinstance(value, Tensor)):
            refuse("data", "batches of samples", "a scalar", "Pass a tensor (n, ...).")
        for part in batch.parts():
            count += len(part)
            yield part
    if count == 0:
        refuse("data", "at least one sample", "none", "Pass a tensor (n, ...) or a loader that is not empty.")


def _items(data: object, takes: _Takes) -> Iterator[object]:
    """The batches, unread."""
    if isinstance(data, Tensor | Mapping | tuple) or (isinstance(data, list) and _is_one_batch(data, takes)):
        yield data
    elif isinstance(data, str | bytes) or not isinstance(data, Iterable):
        remedy = "Pass a tensor (n, ...), a tuple (inputs, labels), a dict of inputs, or a loader of such batches."
        raise QdeqTypeError(expected("data", "a tensor or an iterable of batches", class_name(data), remedy))
    else:
        yield from data


def _is_one_batch(data: list[Any], takes: _Takes) -> bool:
    """Whether a list is what a loader makes of a tuple, not a list of batches."""
    if not data or not all(isinstance(item, Tensor) for item in data):
        return False
    labelled = len(data) > 1 and _are_labels(data[-1]) and data[0].ndim > 1 and len(data[-1]) == len(data[0])
    return labelled or (takes.need > 1 and takes.takes(len(data)))


def _batch(item: object, takes: _Takes) -> Batch:
    if isinstance(item, Tensor):
        return _of_sequence((item,), takes)
    if isinstance(item, Mapping):
        return _of_names(dict(item), takes)
    if (
        isinstance(item, tuple | list)
        and item
        and any(isinstance(part, Tensor | Mapping | tuple | list) for part in item)
    ):
        return _of_sequence(tuple(item), takes)
    remedy = "Pass batches that are a tensor (n, ...), a tuple of arguments with or without labels, or a dict."
    raise QdeqTypeError(expected("data", "batches of tensors", class_name(item), remedy))


def _are_labels(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 1 and value.dtype in _WHOLE_NUMBERS


def _of_sequence(items: tuple[Any, ...], takes: _Takes) -> Batch:
    last, count = items[-1], len(items)
    if count == 2 and isinstance(items[0], Mapping | tuple | list) and takes.need < 2 and _are_labels(last):
        inputs = _batch(items[0], takes)
        return Batch(inputs.args, _checked(last, inputs), inputs.kwargs)
    if isinstance(last, Tensor) and last.ndim == 1 and count > 1 and takes.takes(count - 1):
        inputs = Batch(items[:-1])
        if len(last) == len(inputs) or not takes.takes(count):
            return Batch(inputs.args, _checked(last, inputs) if _are_labels(last) else None)
    if takes.takes(count):
        return Batch(items)
    if count > 1 and takes.takes(count - 1):
        _refuse_labels(last, Batch(items[:-1]))
    remedy = "Pass batches that are a tuple of the forward's arguments, with labels behind them or without."
    return refuse("data", f"{takes.words()} arguments for the forward", count, remedy)


def _of_names(items: dict[str, Any], takes: _Takes) -> Batch:
    label = next((name for name in LABEL_NAMES if name in items and name not in takes.required), None)
    labels = None if label is None else items.pop(label)
    if not items or not any(isinstance(value, Tensor | tuple | list) for value in items.values()):
        raise QdeqTypeError(
            expected("data", "batches of tensors", f"a dict of {', '.join(items) or 'nothing'}", "Pass inputs.")
        )
    if takes.names is None or takes.names.issuperset(items):
        inputs = Batch((), None, items)
    elif len(items) == 1 or all(_NUMBERED.fullmatch(name) for name in items):
        inputs = _of_sequence(tuple(items[name] for name in sorted(items, key=lambda name: (len(name), name))), takes)
    else:
        unknown = ", ".join(name for name in items if name not in takes.names)
        refuse("data", f"inputs named {', '.join(sorted(takes.names))}", unknown, "Rename them, or leave them out.")
    return Batch(inputs.args, _checked(labels, inputs) if _are_labels(labels) else inputs.labels, inputs.kwargs)


def _checked(labels: Tensor, inputs: Batch) -> Tensor:
    if len(labels) != len(inputs):
        _refuse_labels(labels, inputs)
    return labels.long()


def _refuse_labels(value: Any, inputs: Batch) -> NoReturn:
    got = f"{tuple(value.shape)} {dtype_name(value.dtype)}" if isinstance(value, Tensor) else class_name(value)
    remedy = f"The inputs were {inputs.words()}: pass a label for each sample, or inputs alone."
    raise QdeqValueError(expected("data", f"labels int64 ({len(inputs)},)", got, remedy))
