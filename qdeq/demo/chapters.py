"""What the demo shows once everything is trained and converted: one function per chapter, numbers from the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from qdeq.cli.comparison import equal_bits
from qdeq.demo.data import Images
from qdeq.diagnosis.explain import explain

__all__ = ["CHAPTERS", "Row", "Run"]

LEAST_INT8_ACCURACY = 95.0
LARGEST_ACCURACY_GAP = 0.5


@dataclass(frozen=True)
class Row:
    """One model against the int8 model on the test images."""

    name: str  # as shown to the reader
    accuracy: float  # percent of the images
    agreement: float  # percent of the images where it and the int8 model choose the same class
    largest_difference: float  # of a logit from the int8 model's

    @classmethod
    def of(cls, name: str, logits: Tensor, int8_logits: Tensor, labels: Tensor) -> Row:
        """Score logits (count, 10) against the int8 model's and the labels (count,)."""
        chosen = logits.argmax(1)
        return cls(
            name,
            100 * (chosen == labels).double().mean().item(),
            100 * (chosen == int8_logits.argmax(1)).double().mean().item(),
            (logits - int8_logits).abs().max().item(),
        )


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that a chapter may look at."""

    rows: list[Row]  # the table
    int8_row: Row  # the int8 model's row in it
    rebuilt_row: Row  # the row of the model that qdeq rebuilt
    int8: nn.Module  # the int8 model
    rebuilt: nn.Module  # the float model that qdeq rebuilt from it
    loops: tuple[nn.Module, nn.Module]  # the two networks that the loop wrote to
    copied: list[str]  # the names that the loop copied
    images: Images  # the images that the rows were measured on


@dataclass(frozen=True)
class Outcome:
    """What a chapter found."""

    facts: dict[str, Any]  # for ``results.json``
    problems: list[str]  # sentences; if there is one, the demo fails


def _differing(left: Tensor, right: Tensor) -> int:
    """Values of two float32 tensors whose bits differ; all of them if the shapes do."""
    if left.shape != right.shape or left.dtype != torch.float32 or right.dtype != torch.float32:
        return max(left.numel(), right.numel())
    return left.numel() - int(equal_bits(left, right).count_nonzero())


def _plain_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=not index, overflow="fold")
    return table


def accuracy(run: Run, console: Console) -> Outcome:
    """One line per model: accuracy, agreement with int8, largest difference of a logit."""
    table = _plain_table("model", "accuracy %", "agrees with int8 %", "largest logit difference")
    for row in run.rows:
        numbers = (f"{row.accuracy:.2f}", f"{row.agreement:.2f}", f"{row.largest_difference:.3f}")
        table.add_row(row.name, *numbers, style="bold" if row is run.rebuilt_row else None)
    console.print(table)
    problems = []
    if run.int8_row.accuracy < LEAST_INT8_ACCURACY:
        problems.append(
            f"the int8 model's accuracy is {run.int8_row.accuracy:.2f} %, under {LEAST_INT8_ACCURACY:.0f} %: "
            "it learned too little for the comparison to say much"
        )
    gap = abs(run.rebuilt_row.accuracy - run.int8_row.accuracy)
    if gap > LARGEST_ACCURACY_GAP:
        problems.append(f"qdeq's accuracy differs from int8's by {gap:.2f} points, more than {LARGEST_ACCURACY_GAP}")
    return Outcome({"rows": [vars(row) for row in run.rows]}, problems)


def never_copied(run: Run, console: Console) -> Outcome:
    """Name what the loop left as random as it was, with its share of all weights."""
    places = _places(run.int8)
    left = {name: value for name, value in run.rebuilt.named_parameters() if name not in run.copied}
    weights = {name: value.numel() for name, value in run.rebuilt.named_parameters() if name.endswith("weight")}
    lost = sum(count for name, count in weights.items() if name in left)
    total = sum(weights.values())
    table = _plain_table("never copied by the loop", "values", "% of weights", "its key in int8, after the module's")
    for name, value in left.items():
        share = f"{100 * value.numel() / total:.2f}" if name in weights else ""
        table.add_row(name, f"{value.numel():,}", share, places.get(name, "?"))
    console.print(table)
    differing = sum(_differing(*(loop.get_parameter(name) for loop in run.loops)) for name in run.copied)
    console.print(
        f"The loop copied {100 * (total - lost) / total:.1f} % of the weights and raised no error. It never copied "
        f"{lost:,} of {total:,} weights ({100 * lost / total:.1f} %) and {len(left.keys() - weights.keys())} biases. "
        f"Its two variants differ in {differing:,} of the {total - lost:,} weights that they copied: "
        "their arithmetic is not the problem.\n"
    )
    facts = {
        "never_copied": sorted(left),
        "weights": total,
        "weights_never_copied": lost,
        "variants_differ_in": differing,
    }
    return Outcome(facts, [])


def _places(int8: nn.Module) -> dict[str, str]:
    """Find each float parameter in the int8 model's state dict: the rest of the key after the module's path."""
    places = {}
    for key, value in int8.state_dict().items():
        if key.endswith("._packed_params._packed_params") and isinstance(value, tuple):
            module = key.removesuffix("._packed_params._packed_params")
            places[f"{module}.weight"], places[f"{module}.bias"] = (f"{key.removeprefix(module)}[{i}]" for i in (0, 1))
        elif key.endswith((".weight", ".bias")):
            places[key] = key[key.rindex(".") :]
    return places


def every_bit(run: Run, console: Console) -> Outcome:
    """Every weight against ``tensor.dequantize()`` and every bias, as 32-bit integers."""
    expected: dict[str, Tensor] = {}
    for name, module in run.int8.named_modules():
        if callable(getattr(module, "weight", None)):
            expected[f"{name}.weight"] = module.weight().dequantize()
            if module.bias() is not None:
                expected[f"{name}.bias"] = module.bias()
    rebuilt = dict(run.rebuilt.named_parameters())
    differing = {name: _differing(rebuilt[name], value) for name, value in expected.items() if name in rebuilt}
    facts = {}
    for kind, noun, reference in (("weight", "weights", "tensor.dequantize()"), ("bias", "biases", "module.bias()")):
        names = [name for name in differing if name.endswith(kind)]
        values = sum(expected[name].numel() for name in names)
        wrong = sum(differing[name] for name in names)
        facts[noun] = {"tensors": len(names), "values": values, "differ": wrong}
        console.print(
            f"Bit for bit, {noun} against {reference}: {len(names)} tensors, {values:,} values, {wrong:,} differ."
        )
    problems = [f"{name}: {count:,} values differ in their bits" for name, count in differing.items() if count]
    problems += [f"{name}: in one of the two models only" for name in sorted(expected.keys() ^ rebuilt.keys())]
    return Outcome({"bits": facts}, problems)


def explained(run: Run, console: Console) -> Outcome:
    """Ask ``qdeq.explain`` why the loops' networks are wrong, and whether the rebuilt one is right."""
    data = list(run.images.batches(64))
    facts: dict[str, Any] = {}
    problems = []
    for name, model in (("in place", run.loops[0]), ("through the state dict", run.loops[1])):
        explanation = explain(run.int8, model, data)
        console.print(f"qdeq explain, the loop that copies {name}:\n{explanation.verdict}\n", highlight=False)
        facts[name] = {"verdict": explanation.verdict, "accuracy_regained": explanation.regained}
        named = {item.module for item in explanation.findings if item.kind == "weight_not_copied"}
        never = {key.removesuffix(".weight") for key in _weights(run.rebuilt) if key not in run.copied}
        if named != never:
            problems.append(f"explain names {sorted(named)} as never copied, the loop left out {sorted(never)}")
    rebuilt = explain(run.int8, run.rebuilt, data)
    console.print(f"qdeq explain, the rebuilt model:\n{rebuilt.verdict}", highlight=False)
    facts["rebuilt"] = {"verdict": rebuilt.verdict}
    if not rebuilt.agrees:
        problems.append("explain finds a fault in the rebuilt model")
    return Outcome({"explained": facts}, problems)


def _weights(model: nn.Module) -> list[str]:
    """Name the weights of the layers, those of batch norm left out."""
    return [name for name, value in model.named_parameters() if name.endswith("weight") and value.dim() > 1]


# Told in this order. A new chapter is a function of the same kind, added at the end.
CHAPTERS: tuple[Callable[[Run, Console], Outcome], ...] = (accuracy, never_copied, every_bit, explained)
