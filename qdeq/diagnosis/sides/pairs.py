"""Which layer of the float side belongs to which layer of the int8 side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from qdeq.diagnosis.sides.float_side import float_layers
from qdeq.diagnosis.sides.integers import FloatLayer, IntegerLayer
from qdeq.diagnosis.sides.open import Side
from qdeq.errors import QdeqValueError, expected
from qdeq.layers.batch_norm import NormValues, fold_batch_norm

__all__ = ["Pair", "match_layers", "norms_behind"]

# A fresh batch norm multiplies by 1 / sqrt(1 + eps), which is within this of 1.
NEARLY_ONE = 1e-3


@dataclass(eq=False)
class Pair:
    """A layer of both sides."""

    layer: IntegerLayer  # the int8 side
    partner: FloatLayer  # the float side
    total: int  # number of weights of all layers of the int8 side, at least 1
    norm: str = ""  # dotted path of the batch norm right behind the float layer; empty if there is none
    folded: tuple[Tensor, Tensor] | None = None  # (weight, bias) of the float layer with that batch norm folded in
    norm_factor: tuple[Tensor, Tensor] | None = None  # factor and shift of that batch norm per channel
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
        return self.norm_factor is None or bool(((self.norm_factor[0] - 1).abs() <= NEARLY_ONE).all())

    @property
    def bias(self) -> Tensor | None:
        """The bias that the float side applies, to compare with the int8 one."""
        if self.folded is not None and (self.use_folded or self.norm_is_identity):
            return self.folded[1]
        return self.partner.bias


def match_layers(layers: list[IntegerLayer], side: Side) -> tuple[list[Pair], list[IntegerLayer]]:
    """Pair by name, then what is left by shape: the pairs in the int8 side's order, and the layers without a partner.

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
    total = max(1, sum(layer.numel for layer in layers))
    pairs = [Pair(layer, chosen[layer.path], total) for layer in layers if layer.path in chosen]
    if side.model is not None:
        _attach_norms(pairs, side.model)
    return pairs, [layer for layer in layers if layer.path not in chosen]


def norms_behind(model: nn.Module) -> Iterator[tuple[str, tuple[str, nn.modules.batchnorm._BatchNorm]]]:
    """Layer -> the batch norm that is registered right behind it, before the next layer."""
    before = ""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if before and not path.startswith(before + "."):
                yield before, (path, module)
            before = ""
        elif isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim >= 2:
            before = path


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
