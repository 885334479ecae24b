"""Which batch norm follows which layer: read from forwards; from the order of registration only where it is plain.

A pair is a layer and a batch norm that can be folded into it: everything that the layer gives goes through that norm
and nowhere else, and the norm runs on nothing else. What lies between may reshape or drop values in training, as
fusing does not look at it either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from qdeq.errors import QdeqTypeError, expected, refuse
from qdeq.tree.flow import Flow
from qdeq.tree.walk import every_module, owner_of

__all__ = ["NormsBehind", "by_order", "norms_behind"]

_LAYERS = (nn.Linear, _ConvNd)
_BEHIND: list[tuple[type[nn.Module], tuple[type[nn.Module], ...]]] = [
    (nn.BatchNorm1d, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)),
    (nn.BatchNorm2d, (nn.Conv2d, nn.ConvTranspose2d)),
    (nn.BatchNorm3d, (nn.Conv3d, nn.ConvTranspose3d)),
]


@dataclass
class NormsBehind:
    """Batch norms and the layers that they follow.

    Attributes:
        pairs: dotted path of a layer -> that of the batch norm behind it: stated, or certain. A norm that several
            layers share is there for each of them.
        possible: dotted path of a batch norm -> those of the layers that it may follow, where neither forward nor
            order tells which.

    """

    pairs: dict[str, str] = field(default_factory=dict)
    possible: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def refuse_possible(self, where: str, norms: Collection[str]) -> None:
        """Raise one error that lists what is possible for those of ``norms`` that are not certain.

        Raises:
            QdeqValueError: there are such norms.

        """
        open_norms = [norm for norm in self.possible if norm in norms]
        if not open_norms:
            return
        got = "; ".join(f"{norm} behind {' or '.join(self.possible[norm])}" for norm in open_norms)
        example = f"{{{self.possible[open_norms[0]][0]!r}: {open_norms[0]!r}, ...}}"
        refuse(
            where, "a layer before each batch norm that its forward or the order tells", got, f"State norms={example}."
        )


def norms_behind(
    model: nn.Module,
    stated: Mapping[str, str] | None = None,
    *,
    layers: Collection[str] | None = None,
    norms: Collection[str] | None = None,
    where: str = "norms",
) -> NormsBehind:
    """Find the batch norm behind each linear and convolution of a float model; nothing is run on data.

    Args:
        model: float model, in any mode; it is not changed.
        stated: dotted path of a layer -> that of the batch norm behind it, as the user knows it; the rest is found.
        layers: where only the order is left to tell: the layers that may have a batch norm; None for all.
        norms: likewise the batch norms that may be behind one.
        where: the argument's name in errors.

    Raises:
        QdeqTypeError: ``stated`` is no mapping of names.
        QdeqValueError: a stated path is no layer or no batch norm of ``model``, or their channels differ.

    """
    finder = _Finder(model, dict(_checked(where, model, stated)))
    found = NormsBehind(dict(finder.stated))
    finder.by_forward(found)
    finder.by_registration(found, layers, norms)
    return found


def by_order(
    layers: Mapping[str, int],
    norms: Mapping[str, int],
    fits: Callable[[str, str], bool],
    surely: Callable[[str, str], bool] | None = None,
    *,
    ordered: bool = True,
) -> NormsBehind:
    """Pair layers and norms of one module by the order in which they are listed, and by their channels.

    A norm right behind a layer belongs to it, unless another layer that it fits has no norm right behind; a norm that
    is left with one layer that fits, which no other norm fits, belongs to that.

    Args:
        layers: path of a layer -> its place in the order.
        norms: path of a batch norm -> its place.
        fits: whether a layer (first) may have the channels of a norm.
        surely: whether it has them, where ``fits`` does not say so much.
        ordered: with False the places mean nothing.

    """
    before = {
        norm: [layer for layer in layers if fits(layer, norm) and (not ordered or layers[layer] < norms[norm])]
        for norm in norms
    }
    found = NormsBehind()
    direct = _direct(layers, norms, before) if ordered else {}
    for layer, norm in direct.items():
        if all(other in direct for other in before[norm]):
            found.pairs[layer] = norm
    while True:
        left = {
            norm: [layer for layer in before[norm] if layer not in found.pairs]
            for norm in norms
            if norm not in found.pairs.values()
        }
        wanted = Counter(layer for some in left.values() for layer in some)
        sole = {some[0]: norm for norm, some in left.items() if len(some) == 1 and wanted[some[0]] == 1}
        sole = {layer: norm for layer, norm in sole.items() if surely is None or surely(layer, norm)}
        if not sole:
            break
        found.pairs.update(sole)
    found.possible = {norm: tuple(some) for norm, some in left.items() if some}
    return found


def _direct(layers: Mapping[str, int], norms: Mapping[str, int], before: Mapping[str, list[str]]) -> dict[str, str]:
    """Layer -> the norm that is listed right behind it and fits."""
    direct: dict[str, str] = {}
    last = ""
    for path in sorted([*layers, *norms], key=lambda path: layers[path] if path in layers else norms[path]):
        if path in norms and last in before[path]:
            direct[last] = path
        last = path if path in layers else ""
    return direct


class _Finder:
    def __init__(self, model: nn.Module, stated: dict[str, str]) -> None:
        self.flow, self.stated = Flow(model), stated
        self.modules = self.flow.modules
        self.layers = [path for path, module in self.modules.items() if isinstance(module, _LAYERS)]
        inner = {f"{layer}.bn" for layer in self.layers}  # a QAT layer's own
        self.norms = [p for p, m in self.modules.items() if isinstance(m, _BatchNorm) and p not in inner]
        self.known = set(stated) | set(stated.values())

    def fits(self, layer: str, norm: str) -> bool:
        module, batch_norm = self.modules[layer], self.modules[norm]
        kinds = next((layers for cls, layers in _BEHIND if isinstance(batch_norm, cls)), _LAYERS)
        return isinstance(module, kinds) and _channels(module) == _features(batch_norm)

    def by_forward(self, found: NormsBehind) -> None:
        """What the flow of values shows; ``known`` is all that it shows anything about."""
        wanted = [layer for layer in self.layers if layer not in self.known]
        behind = {layer: self.flow.behind(layer) for layer in wanted}
        before = {norm: self.flow.before(norm) for norm in self.norms if norm not in self.known}
        for layer, norm in behind.items():
            if not norm or norm not in before or any(not one or behind.get(one) != norm for one in before[norm]):
                continue
            if _channels(self.modules[layer]) == _features(self.modules[norm]):
                found.pairs[layer] = norm
        self.known.update(layer for layer, norm in behind.items() if norm == "" or norm in found.pairs.values())
        self.known.update(norm for norm, layers in before.items() if None not in layers)

    def by_registration(
        self, found: NormsBehind, layers: Collection[str] | None, norms: Collection[str] | None
    ) -> None:
        """Those of which the forward shows nothing, module by module around them."""
        places = {path: place for place, path in enumerate(self.modules)}
        free = [p for p in self.layers if p not in self.known and (layers is None or p in layers)]
        groups: dict[str, list[str]] = {}
        for norm in self.norms:
            if norm not in self.known and (norms is None or norm in norms):
                groups.setdefault(owner_of(self.modules, norm), []).append(norm)
        for owner, members in groups.items():
            near = [layer for layer in free if owner_of(self.modules, layer) == owner]
            told = by_order({p: places[p] for p in near}, {p: places[p] for p in members}, self.fits)
            found.pairs.update(told.pairs)
            found.possible.update(told.possible)
            told_of = {*told.pairs.values(), *told.possible}
            for norm in members:  # their layers may be registered in a module around this one, or in one within it
                if norm not in told_of:
                    far = [p for p in free if p not in found.pairs and p not in near and self.fits(p, norm)]
                    far = [p for p in far if places[p] < places[norm] and _related(self.modules, p, owner)]
                    if far:
                        found.possible[norm] = tuple(far)


def _related(modules: Mapping[str, nn.Module], layer: str, owner: str) -> bool:
    """Whether one of the forwards around a layer and ``owner`` runs the other."""
    return not owner or layer.startswith(owner + ".") or owner.startswith(owner_of(modules, layer))


def _channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _features(norm: Any) -> int:
    return int(norm.num_features)


def _checked(where: str, model: nn.Module, stated: Mapping[str, str] | None) -> Mapping[str, str]:
    """``stated``, once every path in it is what it is stated to be."""
    if stated is None:
        return {}
    if not isinstance(stated, Mapping) or not all(isinstance(name, str) for pair in stated.items() for name in pair):
        remedy = "Pass the path of each layer with that of its batch norm, such as {'conv1': 'bn1'}."
        raise QdeqTypeError(expected(where, "a dict of str to str", repr(stated), remedy))
    modules = dict(every_module(model, remove_duplicate=False))
    for layer, norm in stated.items():
        if not isinstance(modules.get(layer), _LAYERS):
            refuse(
                where, "paths of linears and convolutions as keys", repr(layer), "Pass a path of model.named_modules()."
            )
        if not isinstance(modules.get(norm), _BatchNorm):
            refuse(where, "paths of batch norms as values", repr(norm), "Pass a path of model.named_modules().")
        channels, features = _channels(modules[layer]), _features(modules[norm])
        if channels != features:
            got = f"{norm!r} with {features} channels behind {layer!r} with {channels}"
            refuse(
                where,
                "a batch norm of as many channels as its layer",
                got,
                "State the norm that the forward runs there.",
            )
    return stated
