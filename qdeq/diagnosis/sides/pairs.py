"""Which layer of the float side belongs to which layer of the int8 side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from qdeq.diagnosis.sides.float_side import float_layers, renaming_of, state_norms
from qdeq.diagnosis.sides.integers import FloatLayer, Int8Side, IntegerLayer
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqValueError, expected
from qdeq.layers.batch_norm import NormValues, fold_batch_norm
from qdeq.tree.norms import norms_behind
from qdeq.words import class_name, join

__all__ = ["Norm", "Pair", "match_layers", "other_norms"]

# A fresh batch norm multiplies by 1 / sqrt(1 + eps), which is within this of 1.
NEARLY_ONE = 1e-3
# A file does not hold eps: torch's default comes first, then the others in use.
USUAL_EPS = (1e-5, 1e-3, 1e-6, 1e-4, 1e-2)
# Forms of other batch norms that are tried where the one behind the layer does not explain the integers, and how far,
# as a share, their factors may be from those of the integers: that of another layer is as far as its own size.
MOST_OTHERS = 8
FAR = 0.3
# Weights of each channel from which a batch norm's factor is estimated.
SAMPLE_COLUMNS = 512


@dataclass(frozen=True, eq=False)
class Norm:
    """A batch norm that may follow a layer."""

    path: str  # dotted path; empty for one that a prepared layer applies itself
    values: NormValues
    transposed: bool  # the layer's output channels are its weight's second dimension


@dataclass(eq=False)
class Pair:
    """A layer of both sides."""

    layer: IntegerLayer  # the int8 side
    partner: FloatLayer  # the float side
    total: int  # number of weights of all layers of the int8 side, at least 1
    norms: list[Norm] = field(default_factory=list)  # forms of the batch norm that should be folded into the int8 layer
    others: Mapping[str, list[NormValues]] = field(default_factory=dict)  # path -> forms of those that may be instead
    norm: str = ""  # dotted path of the batch norm right behind the float layer; empty if there is none
    eps: float = 0.0  # its eps
    folded: tuple[Tensor, Tensor] | None = None  # (weight, bias) of the float layer with that batch norm folded in
    norm_factor: Tensor | None = None  # factor of that batch norm per channel
    use_folded: bool = False  # the float layer is the unfolded original, so the folded values are the ones to compare

    @property
    def alone(self) -> bool:
        """Whether both are layers that can be run by themselves."""
        return self.layer.alone and self.partner.alone

    @property
    def same_shape(self) -> bool:
        """Whether both weights have one shape."""
        return tuple(self.partner.weight.shape) == self.layer.shape

    @property
    def norm_is_identity(self) -> bool:
        """Whether the batch norm behind the layer multiplies by (nearly) one, as a fresh one does."""
        return self.norm_factor is None or bool(((self.norm_factor - 1).abs() <= NEARLY_ONE).all())

    @property
    def weight(self) -> Tensor:
        """The weight that the float side applies, to compare with the int8 one."""
        return self.folded[0] if self.folded is not None and self.use_folded else self.partner.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias that the float side applies, to compare with the int8 one."""
        if self.folded is not None and (self.use_folded or self.norm_is_identity):
            return self.folded[1]
        return self.partner.bias

    def fold_with(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """(weight, bias) of the float layer with a batch norm folded in."""
        return fold_batch_norm(self.partner.weight, self.partner.bias, norm.values, transposed=norm.transposed)

    def fold(self, norm: Norm) -> None:
        """Take a batch norm for the one behind the layer."""
        self.norm, self.eps, self.norm_factor = norm.path, norm.values.eps, norm.values.factor
        self.folded = self.fold_with(norm)

    def as_applied(self) -> Pair:
        """The pair with the float layer as one that has no batch norm behind it."""
        return Pair(self.layer, replace(self.partner, weight=self.weight, bias=self.bias), self.total)


def match_layers(held: Int8Side, side: Side) -> tuple[list[Pair], list[IntegerLayer]]:
    """Pair by name, then what is left by shape: the pairs in the int8 side's order, and the layers without a partner.

    Raises:
        QdeqValueError: nothing can be paired.

    """
    layers, theirs, chosen = held.layers, float_layers(side), {}
    renamed = renaming_of(held, side)
    for layer in layers:
        path = renamed(layer.path)
        # Fusing moves a layer into a container, which takes its name and calls it "0".
        name = next((name for name in (path, f"{path}.0", layer.path) if name in theirs), None)
        if name is not None:
            chosen[layer.path] = theirs.pop(name)
    for layer in layers:
        found = None if layer.path in chosen else _weight_of_function(layer, side)
        if found is not None and all(other.path != found.path for other in chosen.values()):
            chosen[layer.path] = found
    for layer in layers:
        if layer.path in chosen:
            continue
        same = next((path for path, other in theirs.items() if tuple(other.weight.shape) == layer.shape), None)
        if same is not None:
            chosen[layer.path] = theirs.pop(same)
    if layers and not chosen:
        names = ", ".join(layer.path for layer in layers[:5])
        remedy = "Pass the float form of the same network; no layer agrees in name or shape."
        raise QdeqValueError(expected("float_model", f"layers like {names}", ", ".join(theirs) or "none", remedy))
    total = max(1, sum(layer.numel for layer in layers))
    pairs = [
        Pair(_in_full(layer, chosen[layer.path].weight), chosen[layer.path], total)
        for layer in layers
        if layer.path in chosen
    ]
    # A batch norm that the int8 side still has is not folded into anything.
    kept = {tensor.module for tensor in held.plain if tensor.name == "running_var"}
    _attach_norms(pairs, side, {renamed(path) for path in kept})
    return pairs, [layer for layer in layers if layer.path not in chosen]


def _weight_of_function(layer: IntegerLayer, side: Side) -> FloatLayer | None:
    """The parameter that the float model hands to a function where the int8 graph has a layer.

    Such a layer is named after the module that runs the function, or lies in it. There the parameter has to be the only
    one of its shape.
    """
    modules = {} if side.model is None else dict(side.model.named_modules())
    owner = layer.path if layer.path in modules else layer.path.rpartition(".")[0]
    module = modules.get(owner)
    if module is None or not layer.alone:
        return None
    lists = [(name, child) for name, child in module.named_children() if type(child) is nn.ParameterList]
    own = [
        (join(at, name), p) for at, held in [("", module), *lists] for name, p in held.named_parameters(recurse=False)
    ]
    fitting = [(name, p.detach()) for name, p in own if tuple(p.shape) == layer.shape]
    if len(fitting) != 1 or not fitting[0][1].is_floating_point():
        return None
    ((name, value),) = fitting
    return FloatLayer(join(owner, name), class_name(module), value, layer.bias, name)


def _in_full(layer: IntegerLayer, weight: Tensor) -> IntegerLayer:
    """Give an int8 weight back the dimensions of size 1 that it lacks.

    qnnpack drops one from a Conv1d's weight of kernel size 1 each time torch unpacks it.
    """
    ints, shape = layer.ints, tuple(weight.shape)
    lost = len(ints.shape) < len(shape) and [n for n in ints.shape if n > 1] == [n for n in shape if n > 1]
    if not lost or ints.axis or ints.shape[0] != shape[0]:
        return layer
    return replace(layer, ints=replace(ints, shape=shape))


def _attach_norms(pairs: list[Pair], side: Side, kept: set[str]) -> None:
    if side.model is None:
        found, behind = state_norms(side)
        values = {path: [norm._replace(eps=eps) for eps in USUAL_EPS] for path, norm in found.items()}
    else:
        kinds = nn.modules.batchnorm._BatchNorm
        values = {p: [NormValues.of(m)] for p, m in side.model.named_modules() if isinstance(m, kinds)}
        behind = norms_behind(side.model).pairs
    values = {path: forms for path, forms in values.items() if not {path, path.removesuffix(".0")} & kept}
    for pair in pairs:
        if not pair.same_shape:
            continue
        if pair.partner.norm is not None:
            pair.norms = _forms(pair, "", [pair.partner.norm._replace(eps=eps) for eps in USUAL_EPS])
            continue
        near = behind.get(pair.partner.path, "")
        pair.norms = _forms(pair, near, values.get(near, []))
        pair.others = {path: forms for path, forms in values.items() if path != near}
        if pair.norms and side.model is not None:
            pair.fold(pair.norms[0])


def _forms(pair: Pair, path: str, forms: list[NormValues]) -> list[Norm]:
    """A batch norm in all its forms, along each dimension of the weight that may be the output channels."""
    weight, bias, known = pair.partner.weight, pair.partner.bias, pair.partner.transposed
    ways = [turned for turned in (False, True) if known in (None, turned) and (weight.ndim > 2 or not turned)]
    return [
        Norm(path, norm, way)
        for norm in forms
        for way in ways
        if weight.shape[int(way)] == len(norm.factor) and (bias is None or len(bias) == len(norm.factor))
    ]


def other_norms(pair: Pair) -> list[Norm]:
    """Batch norms that may be folded into the int8 layer, for all that their place says: the likeliest first.

    The factor of each channel that brings the float weights nearest to the dequantized ones is compared with theirs.
    """
    candidates = [norm for path, forms in pair.others.items() for norm in _forms(pair, path, forms)]
    if not candidates:
        return []
    reference = pair.layer.ints.reference()
    ratios = {
        way: _ratios(pair.partner.weight, reference, int(way)) for way in {norm.transposed for norm in candidates}
    }
    ranked = []
    for number, norm in enumerate(candidates):
        factor = norm.values.factor.double()
        distance = float((ratios[norm.transposed] - factor).abs().sum() / factor.abs().sum().clamp_min(1e-30))
        if distance < FAR:
            ranked.append((distance, number, norm))
    return [norm for _, _, norm in sorted(ranked, key=lambda item: item[:2])[:MOST_OTHERS]]


def _ratios(weight: Tensor, reference: Tensor, channels: int) -> Tensor:
    w, r = (part.movedim(channels, 0).flatten(1)[:, :SAMPLE_COLUMNS].double() for part in (weight, reference))
    return (r * w).sum(1) / w.square().sum(1).clamp_min(1e-30)
