"""Runs models on data without changing them, and keeps the sums that the numbers are made of."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.measure.data import Batch
from qdeq.diagnosis.results import Outcome
from qdeq.errors import QdeqError, QdeqValueError, expected, refuse
from qdeq.words import dtype_name, error_line

__all__ = ["OutputSums", "Sums", "as_float", "first_tensor", "forward", "squared_error"]

# Sums are taken over this many values at once: they stay in the cache, and torch starts no threads for so few.
CHUNK_VALUES = 1 << 15


def as_float(value: Any) -> Tensor | None:
    """Return a float32 copy of a tensor, dequantized if need be; None for anything else."""
    if not isinstance(value, Tensor):
        return None
    if value.is_quantized:
        return value.dequantize()
    return value.detach().float().clone() if value.is_floating_point() else None


def first_tensor(value: Any) -> Tensor | None:
    """Return the first float tensor of a model's output as float32: in tuples, lists, dicts and dataclasses, too.

    A single number, such as a loss, comes after tensors of samples.
    """
    found = list(_tensors(value))
    return next((tensor for tensor in found if tensor.ndim), found[0] if found else None)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        tensor = as_float(value)
        if tensor is not None:
            yield tensor
        return
    items: Any = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    if dataclasses.is_dataclass(value) and not isinstance(value, Mapping):
        items = (getattr(value, part.name) for part in dataclasses.fields(value))
    for item in items:
        yield from _tensors(item)


def forward(model: nn.Module, batch: Batch, where: str) -> Tensor:
    """Run a model and return its output as float32.

    Raises:
        QdeqValueError: the forward fails; names the module that failed, what it got and the shape of the data.

    """
    try:
        output = first_tensor(model(*batch.args, **batch.kwargs))
    except QdeqError:
        raise
    except Exception as error:
        path, got = _failing_module(model, batch)
        remedy = f"{got}The data was {batch.words()}: pass what the model takes."
        at = f"{where}, module {path}" if path else where
        raise QdeqValueError(expected(at, "a forward that runs on the data", error_line(error), remedy)) from error
    if output is None:
        raise QdeqValueError(expected(where, "an output that holds a float tensor", "none", "Wrap the model."))
    return output


def _failing_module(model: nn.Module, batch: Batch) -> tuple[str, str]:
    """(path of the module that fails, a sentence about the shapes of its input and weight)."""
    entered: list[tuple[nn.Module, Any]] = []
    names = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: Any) -> None:
        entered.append((module, args))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        entered.pop()

    with ExitStack() as hooks:
        for module in model.modules():
            hooks.enter_context(module.register_forward_pre_hook(enter))
            hooks.enter_context(module.register_forward_hook(leave))
        with contextlib.suppress(Exception):  # it failed before; the question is only where
            model(*batch.args, **batch.kwargs)
    if not entered:
        return "", ""
    module, args = entered[-1]
    return names[id(module)], _shapes(module, args)


def _shapes(module: nn.Module, args: Any) -> str:
    if not args or not isinstance(args[0], Tensor):
        return ""
    weight: Any = getattr(module, "weight", None)
    weight = weight() if callable(weight) and not isinstance(weight, Tensor) else weight
    shaped = f", its weight is {tuple(weight.shape)}" if isinstance(weight, Tensor) else ""
    return f"Its input was {tuple(args[0].shape)} {dtype_name(args[0].dtype)}{shaped}. "


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
    def noise(self) -> float:
        """Sum (b - a)^2 / sum a^2; 0 where both are equal, infinite where only a is zero or a value is not finite."""
        if self.error == 0:
            return 0.0
        return self.error / self.aa if self.aa > 0 and math.isfinite(self.error) else math.inf

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
        # Shapes of a and b in the first batch where they differ: nothing can be said of such outputs.
        self.shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def add(self, a: Tensor, b: Tensor, labels: Tensor | None) -> None:
        """Count the outputs of one batch in.

        Raises:
            QdeqValueError: a label is no class of the output.

        """
        if a.shape != b.shape or self.shapes is not None:
            self.shapes = self.shapes or (tuple(a.shape), tuple(b.shape))
            return
        self.sums.add(a, b)
        self.samples += len(a) if a.ndim else 1
        self.classes = self.classes and a.ndim == 2 and a.shape[1] > 1
        if self.classes:
            top_a, top_b = a.argmax(1), b.argmax(1)
            self.agreed += int((top_a == top_b).sum())
            if labels is not None:
                _check_labels(labels, a)
                self.labelled += len(labels)
                self.right_a += int((top_a == labels).sum())
                self.right_b += int((top_b == labels).sum())

    def check_shapes(self) -> None:
        """Refuse outputs of different shapes.

        Raises:
            QdeqValueError: they differ.

        """
        if self.shapes is not None:
            ours, theirs = self.shapes
            refuse("float_model", f"an output {ours}", str(theirs), "Pass two forms of the same network.")

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


def _check_labels(labels: Tensor, output: Tensor) -> None:
    if len(labels) == 0 or (int(labels.min()) >= 0 and int(labels.max()) < output.shape[1]):
        return
    outside = f"{int(labels.min())} to {int(labels.max())}"
    remedy = "Pass the index of each sample's class, or inputs alone."
    refuse("data", f"labels of the output's {output.shape[1]} classes, counted from 0", outside, remedy)
