"""Puts the rebuilt modules in place: a copy of everything float around them, activations back where they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.layers.batch_norm import unfold
from qdeq.report import Report
from qdeq.sources.eager.build import Build, Fused
from qdeq.sources.eager.carry_over import Rebuilt, carry_over, detached
from qdeq.sources.eager.recognise import is_packed_object, is_quantized_module
from qdeq.sources.eager.slots import find_slots
from qdeq.tree.copying import copy_module
from qdeq.tree.walk import HOLDS_NOTHING, every_module
from qdeq.words import class_name

__all__ = ["assemble"]


def assemble(model: nn.Module, rebuilt: list[Rebuilt], build: Build, unfold_bn: bool | float) -> nn.Module:
    """Copy everything that is float around the rebuilt modules.

    deepcopy with a memo that already maps each quantized module to its rebuilt form never touches a packed weight,
    keeps shared modules shared, and follows modules that sit in lists or other plain attributes.
    """
    modules = dict(every_module(model, remove_duplicate=False))
    fused = {part.path: part.item.slots for part in rebuilt if isinstance(part.item, Fused) and part.path in modules}
    slots, reasons = find_slots(modules, fused)
    sources = {id(part.source) for part in rebuilt}
    memo: dict[int, Any] = {}
    for module in modules.values():
        if id(module) not in sources:
            memo |= detached(module)
    for part in rebuilt:
        reason = reasons.get(part.path, "it is not registered as a submodule")
        part.target, activation = _place(part, slots.get(part.path), reason, build.report)
        # convert() leaves every converted leaf at training=True, also in an eval model: only the parent knows.
        mode = part.parent.training
        part.target.train(mode)
        part.carrier = activation or part.target
        if activation is not None:
            memo[id(slots[part.path])] = activation.train(mode)
        memo[id(part.source)] = part.target
        build.report.replaced[part.path] = (class_name(part.source), class_name(part.target))
    if unfold_bn:
        _unfold_all(modules, rebuilt, unfold_bn, memo, build.report)
    result = _deepcopy(model, memo)
    for part in rebuilt:
        carry_over(part, memo, build.report)
    _refuse_hidden(memo, sources.union(map(id, modules.values())), build.report)
    return result


def _unfold_all(
    modules: Mapping[str, nn.Module], rebuilt: list[Rebuilt], eps: bool | float, memo: dict[int, Any], report: Report
) -> None:
    """Fill the Identity right behind a layer with a BatchNorm, unless an activation took that place."""
    names: dict[int, str] = {}
    for path, module in modules.items():
        names.setdefault(id(module), path)
    places, _ = find_slots(modules, {part.path: 1 for part in rebuilt if id(part.source) in names})
    for part in rebuilt:
        slot = places.get(part.path)
        if slot is None or id(slot) in memo or part.target is None:
            continue
        batch_norm = unfold(part.target, part.path, names[id(slot)], eps, report)
        if batch_norm is not None:
            memo[id(slot)] = batch_norm.train(part.parent.training)
            part.carrier = batch_norm if part.carrier is part.target else part.carrier


def _refuse_hidden(memo: dict[int, Any], known: set[int], report: Report) -> None:
    """Whatever else deepcopy found must be float: nothing quantized may hide in an object that qdeq does not enter.

    Args:
        memo: id of an object of the model -> its copy.
        known: ids of modules that were rebuilt or found to be float.
        report: names the modules left quantized; where there are some, their copies are no surprise.

    """
    if report.unconverted:
        return
    copies = [value for key, value in memo.items() if type(value) not in HOLDS_NOTHING and key not in known]
    copied = [value for value in copies if is_packed_object(value)]
    copied += [value for value in copies if isinstance(value, nn.Module) and is_quantized_module(value)]
    if copied:
        names = ", ".join(sorted({class_name(value) for value in copied}))
        remedy = "Register these modules as submodules, or keep them in a list, tuple or dict."
        what = "quantized modules that are registered or in plain containers"
        raise QdeqValueError(expected("model", what, f"{names} inside another object", remedy))


def _place(part: Rebuilt, slot: nn.Module | None, reason: str, report: Report) -> tuple[nn.Module, nn.Module | None]:
    item = part.item
    if not isinstance(item, Fused):
        return item, None
    activation = item.activation()
    name = type(activation).__name__
    if slot is None:
        report.note(part.path, f"{name} kept inside {item.holder.__name__}: {reason}")
        return item.hold(), None
    report.note(part.path, f"{name} put back into the Identity that held its place")
    if part.source._forward_hooks:
        report.note(part.path, f"its forward hooks now see the value before the {name}")
    return item.layer, activation


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy_module(model, memo)
    except QdeqError:
        raise
    except Exception as error:
        remedy = "Remove what cannot be copied from the model, or give its class a __deepcopy__."
        message = expected(
            "model", "float parts that copy.deepcopy can copy", f"{type(error).__name__}: {error}", remedy
        )
        raise QdeqValueError(message) from error
