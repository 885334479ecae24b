"""A plan under the names that a float model has, or of the part of it that was asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.report import Report
from qdeq.state_dicts.integers import plain_dtype
from qdeq.state_dicts.parts import Plan, Rowwise, ShapeOf, target_shape
from qdeq.state_dicts.prefixes import find_renaming, front_of
from qdeq.state_dicts.records import BESIDE
from qdeq.state_dicts.rowwise import ROWWISE_BITS

__all__ = ["below_prefix", "fit_names", "mark_rowwise"]

_CHOOSE = "Say which with prefix=, or take the other out; for a part of the float model pass that part as into."
_SHOWN = 5


def below_prefix(where: str, plan: Plan, prefix: str) -> Plan:
    """What a plan holds below a dotted path, under the names there; everything else is dropped.

    Raises:
        QdeqTypeError: ``prefix`` is no text.
        QdeqValueError: no name begins so.

    """
    if not isinstance(prefix, str):
        remedy = "Pass the start of names, such as 'module.'."
        raise QdeqTypeError(expected(f"{where}: prefix", "a text", type(prefix).__name__, remedy))
    front = front_of(prefix)
    if not any(name.startswith(front) for name in plan.targets):
        tops = sorted({name.partition(".")[0] for name in plan.targets})
        listed = ", ".join(tops[:_SHOWN]) + (f" and {len(tops) - _SHOWN} more" if len(tops) > _SHOWN else "")
        refuse(f"{where}: prefix", "the start of a name", repr(prefix), f"The names begin with {listed}.")
    kept = replace(plan, targets=dict(plan.targets), dropped=dict(plan.dropped))
    for name in [name for name in plan.targets if not name.startswith(front)]:
        kept.drop(name, f"not below {front!r}")
    for table in ("activations", "constants", "doubtful"):
        below = {path: value for path, value in getattr(plan, table).items() if f"{path}.".startswith(front)}
        setattr(kept, table, below)
    return kept.renamed(where, lambda name: name.removeprefix(front))


def fit_names(
    where: str, plan: Plan, model: nn.Module, report: Report, shape_of: ShapeOf, *, as_they_are: bool
) -> Plan:
    """A plan under the names of a float model, without numbers that are beside it; ``report`` says what was renamed.

    Args:
        where: argument, for errors.
        plan: of the source, with tensors that are read.
        model: the float model.
        report: gets a note.
        shape_of: shape of a tensor.
        as_they_are: no prefix may be taken away: the names were chosen.

    Raises:
        QdeqValueError: two parts of the source fit the model, or the source two parts of it.

    """
    shapes = {name: target_shape(target.value, shape_of) or () for name, target in plan.targets.items()}
    targets = {name: tuple(value.shape) for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    renaming = find_renaming(where, shapes, targets, _CHOOSE, as_they_are=as_they_are)
    if renaming.text:
        report.note("", renaming.text)
    fitted = plan.renamed(where, renaming)
    paths = {path for path, _ in model.named_modules() if path}
    fronts = any(front[0] for front in renaming.fronts)
    for name in [name for name in plan.targets if name not in renaming.names and renaming(name) == name]:
        value = plan.targets[name].value
        kind = plain_dtype(value)
        integers, number = kind.startswith(("int", "uint", "bool")), kind and value.numel() == 1
        counter = integers and number and name.rpartition(".")[0] not in paths and name not in targets
        if counter or (fronts and (integers or number)):
            fitted.drop(name, BESIDE)
    return fitted


def mark_rowwise(where: str, plan: Plan, tables: Collection[str] | Mapping[str, int]) -> None:
    """Have tables of bytes read row by row.

    Args:
        where: argument, for errors.
        plan: its targets are changed.
        tables: names of tables, or names -> bits of a value, 8 or 4.

    Raises:
        QdeqTypeError: ``tables`` is no collection of names.
        QdeqValueError: a name that there is not, or other bits.

    """
    if isinstance(tables, str) or not isinstance(tables, Collection):
        remedy = "Pass a list, such as ['emb.weight'], or a dict of names and bits."
        raise QdeqTypeError(expected(f"{where}: rowwise", "names of tables", repr(tables), remedy))
    bits: Mapping[Any, Any] = tables if isinstance(tables, Mapping) else dict.fromkeys(tables, 8)
    for name, width in bits.items():
        if name not in plan.targets:
            refuse(f"{where}: rowwise", "the name of a table", repr(name), "Give it the name that the source has.")
        if width not in list(ROWWISE_BITS):
            refuse(
                f"{where}: rowwise: {name}", f"one of {list(ROWWISE_BITS)} bits", repr(width), "Others are not known."
            )
        target = plan.targets[name]
        note = f"read row by row: {width} bits, scale and offset behind each row"
        plan.targets[name] = replace(target, value=Rowwise(target.value, width), note=note)
