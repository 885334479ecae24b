"""Which source goes to which parameter of a float model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqValueError, expected, refuse
from qdeq.report import DroppedSource, Report
from qdeq.state_dicts.folded_norms import fold_norms
from qdeq.state_dicts.integers import INTEGERS_REMEDY, plain_dtype
from qdeq.state_dicts.lost import constants_of, lost_names, remedy_for
from qdeq.state_dicts.parts import Plan, ShapeOf, Stack, target_shape

__all__ = ["INTO", "Match", "match"]

INTO = "dequantize_state_dict: into"
_DYNAMIC = (1.0, 0)  # what dynamic layers save for an output that they do not quantize
_NAMELESS = re.compile(r"((^|.*\.)(_jit_pass)?_packed_weight_\d+|constants\.\d+)\.(weight|bias)")


@dataclass(frozen=True)
class Match:
    """One parameter or buffer of the float model.

    Attributes:
        target: its name.
        source: float name of the source; empty where ``value`` is written.
        how: how the two were matched, if not by equal names.
        target_class: class of the module that holds it.
        value: a constant for a folded batch norm.
        tied: an earlier name in the model of the same tensor, which has a source of its own.

    """

    target: str
    source: str
    how: str
    target_class: str
    value: float | None = None
    tied: str = ""


def match(
    plan: Plan,
    model: nn.Module,
    report: Report,
    shape_of: ShapeOf,
    *,
    strict: bool,
    norms: Mapping[str, str] | None = None,
) -> list[Match]:
    """Find the source of every tensor in ``model.state_dict()``; ``report`` gets what is unused or missing.

    ``norms``: layer -> the batch norm behind it in ``model``, as far as the user states it.

    Raises:
        QdeqValueError: a shape or a constant that differs, and with ``strict`` an unused source, a parameter without
            one, or a weight or constant that the source cannot hold.

    """
    return _Matcher(plan, model, report, shape_of, norms).run(strict)


class _Matcher:
    def __init__(
        self, plan: Plan, model: nn.Module, report: Report, shape_of: ShapeOf, norms: Mapping[str, str] | None
    ) -> None:
        self.plan, self.model, self.report, self.norms = plan, model, report, norms
        self.shapes = {name: target_shape(target.value, shape_of) or () for name, target in plan.targets.items()}
        self.targets = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        self.modules = dict(model.named_modules())
        self.unused = dict.fromkeys(plan.targets)
        self.matches: dict[str, Match] = {}

    def run(self, strict: bool) -> list[Match]:
        for name in self.targets:
            if name in self.plan.targets:
                self._take(name, name, "")
        self._match_nameless()
        self._match_tied()
        self._fold_norms(strict)
        self._check_dtypes()
        self._check_shapes()
        self._drop_zero_biases()
        missing = [n for n in self.targets if n not in self.matches and not n.endswith("num_batches_tracked")]
        unused = [source for source in self.unused if not source.endswith("num_batches_tracked")]
        missing += self._missing_constants(strict)
        if (strict and (missing or unused)) or not any(found.source for found in self.matches.values()):
            raise QdeqValueError(self._complaint(missing, unused))
        if missing or unused:
            self._list_what_matched()
        self._check_doubtful(strict)
        for source in unused:
            self.report.dropped.append(DroppedSource(self.plan.targets[source].source, "no parameter of this name"))
        for name in missing:
            if name in self.targets:
                self.report.note(name, "not written: nothing in the state dict goes there")
        return [self.matches[name] for name in self.targets if name in self.matches]

    def _list_what_matched(self) -> None:
        written = [name for name, found in self.matches.items() if found.source]
        self.report.note("", f"{len(written)} of {len(self.targets)} tensors written: {', '.join(written)}")

    def _missing_constants(self, strict: bool) -> list[str]:
        """Names of constants that the file of a model with quantized activations should hold, and does not."""
        known = self.plan.constants
        static = any(qparams != _DYNAMIC for qparams in self.report.activation_qparams.values())
        if not static and not known:
            return []  # activations were not quantized: their classes are the user's own
        constants = constants_of(self.model)
        for name, (own, _) in constants.items():
            if name in known and known[name] != own:
                if strict:
                    remedy = "Pass a model whose activation was made with that value."
                    refuse(f"{INTO}: {name}", f"{known[name]}, as in the source", str(own), remedy)
                self.report.note(name, f"{own} of the float class kept; the source says {known[name]}")
        needed = [name for name, (_, must) in constants.items() if must and name not in known]
        noted = [name for name, (_, must) in constants.items() if not must and name not in known]
        for name in needed + noted:
            self.report.note(name, f"{constants[name][0]} of the float class kept: torch's state dict does not hold it")
        return needed

    def _check_doubtful(self, strict: bool) -> None:
        names = {name: found.source for name, found in self.matches.items()}
        for name, why in lost_names(self.model, names, self.plan.doubtful).items():
            if strict:
                remedy = "With strict=False it is loaded as it is."
                refuse(f"{INTO}: {name}", "a weight that torch saves right", why, remedy)
            self.report.note(name, why)

    def _drop_zero_biases(self) -> None:
        """Qnnpack stores zeros for a layer without a bias."""
        used = {found.source for found in self.matches.values()}
        for source in [name for name in self.unused if name.rpartition(".")[2] in ("bias", "in_proj_bias")]:
            weight = source.removesuffix("bias") + "weight"
            values = self.plan.targets[source].value
            parts = values.parts if isinstance(values, Stack) else (values,)
            plain = all(isinstance(part, Tensor) and not part.is_quantized for part in parts)
            if weight in used and plain and not any(part.any() for part in parts):
                self.unused.pop(source)
                reason = "zeros that qnnpack stores for a layer without a bias"
                self.report.dropped.append(DroppedSource(self.plan.targets[source].source, reason))

    def _class_of(self, name: str) -> str:
        module = self.modules.get(name.rpartition(".")[0])
        return f"{type(module).__module__}.{type(module).__qualname__}" if module is not None else "Tensor"

    def _take(self, name: str, source: str, how: str, value: float | None = None, tied: str = "") -> None:
        self.matches[name] = Match(name, source, how, self._class_of(name), value, tied)
        self.unused.pop(source, None)

    def _match_nameless(self) -> None:
        """Match what graphs call without a name, and frozen scripts hold, by shape if only one fits."""
        free = [n for n in self.targets if n not in self.matches]
        nameless = [s for s in self.unused if _NAMELESS.fullmatch(s)]
        for source in nameless:
            fitting = [n for n in free if tuple(self.targets[n].shape) == self.shapes[source]]
            rivals = [s for s in nameless if self.shapes[s] == self.shapes[source]]
            if len(fitting) == 1 and len(rivals) == 1:
                self._take(fitting[0], source, "the only one of this shape: the file holds no name")

    def _match_tied(self) -> None:
        """A tensor that the model holds under two names needs one source; two sources must be the same."""
        memory = {
            name: (tensor.data_ptr(), tensor.shape, tensor.stride())
            for name, tensor in self.targets.items()
            if tensor.numel() and tensor.device.type != "meta"
        }
        owner: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
        for name, place in memory.items():
            if name in self.matches:
                owner.setdefault(place, name)
        for name, place in memory.items():
            first = owner.get(place, name)
            if first != name:
                source = self.matches.get(name, self.matches[first]).source
                self._take(name, source, f"tied to {first}", tied=first)

    def _fold_norms(self, strict: bool) -> None:
        sources = {name: found.source for name, found in self.matches.items()}
        folded = fold_norms(
            INTO, self.model, self.targets, sources, self.unused, self.report, stated=self.norms, strict=strict
        )
        for found in folded:
            self._take(*found)

    def _check_dtypes(self) -> None:
        """Integers are no float weights, and float numbers no integers: a copy would change them in silence."""
        for name, found in self.matches.items():
            if found.value is not None:
                continue
            target, source = self.targets[name], self.plan.targets[found.source]
            dtype = plain_dtype(source.value)
            integers = dtype.startswith(("int", "uint", "bool"))
            if dtype and integers == (target.is_floating_point() or target.is_complex()):
                what = f"{'floating point or quantized' if integers else 'integer'} values for {target.dtype}"
                remedy = INTEGERS_REMEDY if integers else "Pass the float class of the model that was saved."
                got = f"{dtype} of shape {self.shapes[found.source]} from {source.source}"
                refuse(f"{INTO}: {name}", what, got, remedy)

    def _check_shapes(self) -> None:
        for name, found in self.matches.items():
            wanted = tuple(self.targets[name].shape)
            if found.value is None and self.shapes[found.source] != wanted:
                got = f"{self.shapes[found.source]} from {self.plan.targets[found.source].source}"
                remedy = "Pass the float class of the model that was saved."
                refuse(f"{INTO}: {name}", f"shape {wanted}", got, remedy)

    def _complaint(self, missing: list[str], unused: list[str]) -> str:
        parts = []
        if missing:
            parts.append(f"parameters that nothing is written to: {', '.join(missing)}")
        if unused:
            parts.append(f"sources that nothing uses: {', '.join(self.plan.targets[s].source for s in unused)}")
        remedy = "Pass the float class of the model that was saved, or strict=False to load the rest."
        remedy = remedy_for(self.model, missing) or remedy
        return expected(INTO, "a source for every parameter and a use for every source", "; ".join(parts), remedy)
