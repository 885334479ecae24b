"""Which layer of the float side belongs to which layer of the int8 side."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from qdeq.diagnosis.sides.batch_norm import norms_behind
from qdeq.diagnosis.sides.float_side import float_layers
from qdeq.diagnosis.sides.integers import FloatLayer, IntegerLayer
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqValueError, expected
from qdeq.layers.batch_norm import NormValues, fold_batch_norm

__all__ = ["Pair", "match_layers"]

# A fresh batch norm multiplies by 1 / sqrt(1 + eps), which is within this of 1.
NEARLY_ONE = 1e-3


@dataclass(eq=False)
class Pair:
    """A layer of both sides."""

    layer: IntegerLayer  # the int8 side
    partner: FloatLayer  # the float side
    norm: str = ""  # dotted path of the batch norm right behind the float layer; empty if there is none
    folded: tuple[Tensor, Tensor] | None = None  # (weight, bias) of the float layer with that batch norm folded in
    norm_factor: tuple[Tensor, Tensor] | None = None  # factor and shift of that batch norm per channel
    use_folded: bool = False  # the float layer is the unfolded original, so the folded values are the ones to compare

    @property
    def same_shape(self) -> bool:
        """Whether both weights have one shape."""
        return tuple(self.partner.weight.shape) == self.layer.shape

    @property
    def norm_is_identity(self) -> bool:
        """Whether the batch norm behind the layer multiplies by (nearly) one, as a fresh one does."""
        if self.norm_factor is None:
            return True
        return bool(((self.norm_factor[0] - 1).abs() <= NEARLY_ONE).all())

    @property
    def bias(self) -> Tensor | None:
        """The bias that the float side applies, to compare with the int8 one."""
        if self.folded is not None and (self.use_folded or self.norm_is_identity):
            return self.folded[1]
        return self.partner.bias


def match_layers(layers: list[IntegerLayer], side: Side) -> tuple[list[Pair], list[IntegerLayer]]:
    """Pair by name, then what is left by shape, in order.

    Returns:
        the pairs in the int8 side's order, and the int8 layers without a partner.

    Raises:
        QdeqValueError: nothing can be paired.

    """
    theirs = float_layers(side)
    chosen = {layer.path: theirs.pop(layer.path) for layer in layers if layer.path in theirs}
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
    pairs = [Pair(layer, chosen[layer.path]) for layer in layers if layer.path in chosen]
    if side.model is not None:
        _attach_norms(pairs, side.model)
    return pairs, [layer for layer in layers if layer.path not in chosen]


def _attach_norms(pairs: list[Pair], model: nn.Module) -> None:
    norms = dict(norms_behind(model))
    for pair in pairs:
        if pair.partner.path not in norms:
            continue
        path, module = norms[pair.partner.path]
        norm = NormValues.of(module)
        weight = pair.partner.weight
        transposed = bool(getattr(model.get_submodule(pair.partner.module), "transposed", False))
        if len(norm.factor) != weight.shape[1 if transposed else 0]:
            continue
        pair.norm, pair.norm_factor = path, (norm.factor, norm.shift)
        pair.folded = fold_batch_norm(weight, pair.partner.bias, norm, transposed=transposed)
