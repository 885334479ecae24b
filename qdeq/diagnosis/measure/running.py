"""Runs models on data without changing them, and keeps the sums that the numbers are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.results import Outcome
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError, expected
from qdeq.words import class_name, dtype_name, error_line

__all__ = ["Batch", "OutputSums", "Sums", "as_float", "batches", "first_tensor", "forward", "squared_error"]

# Data is run in parts of this many samples, and about this many bytes: the layers' outputs of one part stay small.
BATCH_SAMPLES = 64
BATCH_BYTES = 4 << 20
# Sums are taken over this many values at once: they stay in the cache, and torch starts no threads for so few.
CHUNK_VALUES = 1 << 15


@dataclass(frozen=True)
class Batch:
    """Inputs (n, ...) and, where the data has them, int64 labels (n,)."""

    inputs: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)

    def part(self, start: int, end: int) -> Batch:
        """Return some of the samples."""
        return Batch(self.inputs[start:end], None if self.labels is None else self.labels[start:end])


def batches(data: object) -> Iterator[Batch]:
    """Take a tensor (n, ...), a pair (inputs, labels), or an iterable of either.

    Raises:
        QdeqTypeError: something else.
        QdeqValueError: no samples.

    """
    count = 0
    for batch in _parts(data):
        if batch.inputs.ndim == 0:
            raise QdeqValueError(expected("data", "batches of samples", "a scalar", "Pass a tensor (n, ...)."))
        sample_bytes = batch.inputs[:1].numel() * batch.inputs.element_size()
        size = max(1, min(BATCH_SAMPLES, BATCH_BYTES // max(1, sample_bytes)))
        for start in range(0, len(batch.inputs), size):
            yield batch.part(start, start + size)
        count += len(batch.inputs)
    if count == 0:
        raise QdeqValueError(expected("data", "at least one sample", "none", "Pass a tensor (n, ...) or a loader."))


def _parts(data: object) -> Iterator[Batch]:
    single = _as_batch(data)
    if single is not None:
        yield single
        return
    if isinstance(data, Mapping | str | bytes) or not isinstance(data, Iterable):
        remedy = "Pass a tensor (n, ...), a pair (inputs, labels), or a loader of either."
        raise QdeqTypeError(expected("data", "a tensor or an iterable of batches", class_name(data), remedy))
    for item in data:
        batch = _as_batch(item)
        if batch is None:
            remedy = "Pass batches that are a tensor (n, ...) or a pair (inputs, labels)."
            raise QdeqTypeError(expected("data", "batches of tensors", class_name(item), remedy))
        yield batch


def _as_batch(item: object) -> Batch | None:
    if isinstance(item, Tensor):
        return Batch(item, None)
    if not isinstance(item, tuple | list) or not item or not isinstance(item[0], Tensor):
        return None
    if len(item) == 1:
        return Batch(item[0], None)
    inputs, labels = item[0], item[1]
    if len(item) != 2 or not isinstance(labels, Tensor) or labels.shape != inputs.shape[:1]:
        return None
    return Batch(inputs, None) if labels.is_floating_point() else Batch(inputs, labels)


def as_float(value: Any) -> Tensor | None:
    """Return a float32 copy of a tensor, dequantized if need be; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    if value.is_quantized:
        return value.dequantize()
    return value.detach().float().clone() if value.is_floating_point() else None


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor of a model's output, which may be nested in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return as_float(value)
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


def forward(model: nn.Module, inputs: Tensor, where: str) -> Tensor:
    """Run a model and return its output as float32.

    Raises:
        QdeqValueError: the forward fails; names the module that failed and the shape of the data.

    """
    try:
        output = first_tensor(model(inputs))
    except QdeqError:
        raise
    except Exception as error:
        path = _failing_module(model, inputs)
        remedy = f"The data was {tuple(inputs.shape)} {dtype_name(inputs.dtype)}: pass what the model takes."
        at = f"{where}, module {path}" if path else where
        raise QdeqValueError(expected(at, "a forward that runs on the data", error_line(error), remedy)) from error
    if output is None:
        raise QdeqValueError(expected(where, "an output that holds a float tensor", "none", "Wrap the model."))
    return output


def _failing_module(model: nn.Module, inputs: Tensor) -> str:
    entered: list[str] = []
    names = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        entered.append(names[id(module)])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        entered.pop()

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(leave))
        try:
            model(inputs)
        except Exception:  # noqa: BLE001 (it failed before; the question is only where)
            return entered[-1] if entered else ""
    return ""


@dataclass
class Sums:
    """Running sums over the values a of one model and b of the other."""

    count: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    error: float = 0.0
    absolute: float = 0.0
    largest: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count two float32 tensors of one shape in."""
        self.count += a.numel()
        for x, y in _chunks(a, b):
            size = (y - x).abs_()
            self.aa += float(torch.dot(x, x))
            self.bb += float(torch.dot(y, y))
            self.ab += float(torch.dot(x, y))
            self.error += float(torch.dot(size, size))
            self.absolute += float(size.sum())
            self.largest = max(self.largest, float(size.max()))

    @property
    def sqnr_db(self) -> float | None:
        """10 log10(sum a^2 / sum (b - a)^2); None where both are equal or a is zero."""
        if not (self.error > 0 and self.aa > 0 and math.isfinite(self.error)):
            return None
        return 10 * math.log10(self.aa / self.error)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 where they are equal."""
        if self.error == 0:
            return 1.0
        size = (self.aa * self.bb) ** 0.5
        return self.ab / size if size > 0 else 0.0

    def numbers(self) -> dict[str, Any]:
        """Return them as the fields of a :class:`Layer` or an :class:`Outcome`."""
        mean = self.absolute / max(1, self.count)
        return {"sqnr_db": self.sqnr_db, "mean_abs": mean, "max_abs": self.largest, "cosine": self.cosine}


def squared_error(a: Tensor, b: Tensor) -> float:
    """Sum of the squared differences of two float32 tensors of one shape."""
    total = 0.0
    for x, y in _chunks(a, b):
        difference = y - x
        total += float(torch.dot(difference, difference))
    return total


def _chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(torch.split(a.reshape(-1), CHUNK_VALUES), torch.split(b.reshape(-1), CHUNK_VALUES), strict=True)


class OutputSums:
    """Running comparison of both models' outputs."""

    def __init__(self) -> None:
        self.sums = Sums()
        self.samples = self.agreed = self.right_a = self.right_b = self.labelled = 0
        self.classes = True

    def add(self, a: Tensor, b: Tensor, labels: Tensor | None) -> None:
        """Count the outputs of one batch in.

        Raises:
            QdeqValueError: the outputs differ in shape.

        """
        if a.shape != b.shape:
            remedy = "Pass two forms of the same network."
            raise QdeqValueError(expected("float_model", f"an output {tuple(a.shape)}", str(tuple(b.shape)), remedy))
        self.sums.add(a, b)
        self.samples += len(a) if a.ndim else 1
        self.classes = self.classes and a.ndim == 2 and a.shape[1] > 1
        if self.classes:
            top_a, top_b = a.argmax(1), b.argmax(1)
            self.agreed += int((top_a == top_b).sum())
            if labels is not None:
                self.labelled += len(labels)
                self.right_a += int((top_a == labels).sum())
                self.right_b += int((top_b == labels).sum())

    def outcome(self) -> Outcome:
        """Return the numbers so far."""
        labelled = self.classes and self.labelled == self.samples > 0
        return Outcome(
            self.samples,
            **self.sums.numbers(),
            top1_agreement=self.agreed / self.samples if self.classes and self.samples else None,
            accuracy_a=self.right_a / self.labelled if labelled else None,
            accuracy_b=self.right_b / self.labelled if labelled else None,
        )
