"""Puts the float modules in place: a copy of everything float around them, activations back where they were."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.layers.batch_norm import unfold
from qdeq.layers.layer import Norm
from qdeq.layers.make import Made, hold, part_value, without_norm
from qdeq.report import Report
from qdeq.sources.eager.carry_over import carry_over, detached
from qdeq.sources.eager.recognise import is_packed_object, is_quantized_module
from qdeq.sources.eager.slots import Slots
from qdeq.sources.eager.walk import Found
from qdeq.sources.form import Options
from qdeq.tree.walk import HOLDS_NOTHING, empty_containers, every_module
from qdeq.words import class_name, join

__all__ = ["Graphs", "assemble"]


class Graphs(Protocol):
    """Parts of a model that are built anew instead of copied.

    Attributes:
        modules: layers whose modules they call, and which get no other place.

    """

    modules: list[Made]

    def build(self, memo: dict[int, Any], copy: Callable[[Any], Any]) -> None:
        """Set the float form of each in ``memo``, which has those of all layers; ``copy`` copies with that memo."""

    def carry_over(self, memo: dict[int, Any]) -> None:
        """Give each the user's attributes and hooks."""


def assemble(
    model: nn.Module,
    made: Sequence[Made],
    found: Sequence[Found],
    options: Options,
    report: Report,
    graphs: Graphs | None = None,
) -> nn.Module:
    """Copy everything that is float around the float modules, which go where their layers were ``found``.

    deepcopy with a memo that already maps each quantized module to its float form never touches a packed weight,
    keeps shared modules shared, and follows modules that sit in lists or other plain attributes.
    """
    return _Assembly(model, made, found, report, graphs).run(options.unfold_bn)


class _Assembly:
    def __init__(
        self, model: nn.Module, made: Sequence[Made], found: Sequence[Found], report: Report, graphs: Graphs | None
    ) -> None:
        self.model, self.made, self.report, self.graphs = model, made, report, graphs
        self.modules = dict(every_module(model, remove_duplicate=False))
        self.slots = Slots(self.modules)
        self.sources = {path: module for path, module, _, _ in found}
        self.parents = {path: parent for path, _, parent, _ in found}
        self.memo: dict[int, Any] = {}

    def run(self, unfold_bn: bool | float) -> nn.Module:
        called = self.graphs.modules if self.graphs is not None else []
        pairs = [(self.sources[part.layer.path], part) for part in (*self.made, *called)]
        sources = {id(source) for source, _ in pairs}
        for module in self.modules.values():
            if id(module) not in sources:
                self.memo |= detached(module)
                self.memo |= empty_containers(module)
        for part in self.made:
            self._place(part)
        if unfold_bn:
            self._unfold_all(unfold_bn)
        self.memo |= {id(source): part.module for source, part in pairs[len(self.made) :]}
        if self.graphs is not None:
            self.graphs.build(self.memo, self._copy)
        result: nn.Module = self._copy(self.model)
        if self.graphs is not None:
            self.graphs.carry_over(self.memo)
        for source, part in pairs:
            carry_over(source, part.module, part.layer.path, self.memo, self.report)
        self._refuse_hidden(sources.union(map(id, self.modules.values())))
        return result

    def _place(self, part: Made) -> None:
        """Decide where a layer and its activation go."""
        path, source, made = part.layer.path, self.sources[part.layer.path], part.module
        slot = self._slot(path, part.layer.activation.places) if part.layer.activation else ""
        if part.layer.norm is not None:
            self._place_norm(part, part.layer.norm, slot)
        # convert() leaves every converted leaf at training=True, also in an eval model: only the parent knows.
        mode = self.parents[path].training
        if part.layer.activation is not None:
            name = part.layer.activation.kind.__name__
            if isinstance(slot, str):
                holder = part.layer.activation.holder.__name__
                self.report.note(path, f"{name} kept inside {holder}: {slot}")
                part.module = hold(part.module, part.layer.activation)
            else:
                self.report.note(path, f"{name} put back into the Identity that held its place")
                if source.__dict__.get("_forward_hooks"):
                    self.report.note(path, f"its forward hooks now see the value before the {name}")
                activation = part.layer.activation.kind(**part.layer.activation.args)
                self.memo[id(slot)] = part.carrier = activation.train(mode)
        if isinstance(slot, str) and part.carrier is made:
            part.carrier = part.module
        part.module.train(mode)
        self.memo[id(source)] = part.module
        self.report.replaced[path] = (part.layer.source_class, class_name(part.module))

    def _place_norm(self, part: Made, norm: Norm, activation: nn.Module | str) -> None:
        """Give a batch norm its own place, the first behind the layer, where the activation, if any, has another."""
        path = part.layer.path
        slot = self._slot(path, 1)
        if slot is activation or (part.layer.activation is not None and isinstance(activation, str)):
            slot = "the activation has no place behind it"
        if isinstance(slot, str):
            self.report.note(path, f"batch norm kept inside as {join(path, norm.child)}: {slot}")
            return
        place = next(name for name, module in self.modules.items() if module is slot)
        part.module, held = without_norm(part.module, norm)
        self.report.move(join(path, norm.child), place, class_name(held))
        self.report.note(path, f"batch norm put back into {place}")
        self.memo[id(slot)] = part.carrier = held

    def _slot(self, path: str, most: int) -> nn.Module | str:
        return self.slots.find(path, most) if path in self.modules else "it is not registered as a submodule"

    def _unfold_all(self, eps: bool | float) -> None:
        """Fill the Identity right behind a layer with a BatchNorm, unless an activation took that place.

        No batch norm was folded into a layer without a bias: folding gives it one.
        """
        names: dict[int, str] = {}
        for path, module in self.modules.items():
            names.setdefault(id(module), path)
        for part in self.made:
            path = part.layer.path
            slot, bias = self._slot(path, 1), _bias(part)
            if bias is None or id(slot) in self.memo:
                continue
            if isinstance(slot, str):
                self.report.note(path, f"no BatchNorm put back behind it: {slot}")
                continue
            batch_norm = unfold(part.module, path, names[id(slot)], eps, self.report, keep_bias=bias.requires_grad)
            if batch_norm is not None:
                self.memo[id(slot)] = batch_norm.train(self.parents[path].training)
                part.carrier = batch_norm if part.carrier is part.module else part.carrier

    def _copy(self, value: Any) -> Any:
        try:
            return copy.deepcopy(value, self.memo)
        except QdeqError:
            raise
        except Exception as error:
            what, got = "float parts that copy.deepcopy can copy", f"{type(error).__name__}: {error}"
            remedy = "Remove what cannot be copied from the model, or give its class a __deepcopy__."
            raise QdeqValueError(expected("model", what, got, remedy)) from error

    def _refuse_hidden(self, known: set[int]) -> None:
        """Whatever else deepcopy found must be float: nothing quantized may hide in an object that qdeq does not enter.

        Args:
            known: ids of modules that were rebuilt or found to be float. Where some were left quantized, their copies
                are no surprise.

        """
        if self.report.unconverted:
            return
        copies = [value for key, value in self.memo.items() if type(value) not in HOLDS_NOTHING and key not in known]
        hidden = [value for value in copies if is_packed_object(value)]
        hidden += [value for value in copies if isinstance(value, nn.Module) and is_quantized_module(value)]
        if hidden:
            names = ", ".join(sorted({class_name(value) for value in hidden}))
            remedy = "Register these modules as submodules, or keep them in a list, tuple or dict."
            what = "quantized modules that are registered or in plain containers"
            raise QdeqValueError(expected("model", what, f"{names} inside another object", remedy))


def _bias(part: Made) -> Tensor | None:
    """The bias of a layer as its source holds it.

    Folding marks it: it requires gradients where the layer had a bias of its own to train, and not where zeros took
    the place of one (``torch.nn.utils.fusion``); packing, copying and saving keep that.
    """
    found = [source for own in part.layer.parts if own.name == "bias" for source in own.sources]
    value = part_value(found[0]) if len(found) == 1 else None
    return value if isinstance(value, Tensor) else None
