"""The door: what a form in which quantized models come has to offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from qdeq.errors import QdeqError
from qdeq.layers.layer import Layer
from qdeq.layers.make import Made
from qdeq.report import Report, Unconverted

__all__ = ["Description", "Form", "Options"]


@dataclass(frozen=True)
class Options:
    """What the caller of ``dequantize_model`` wants of a form.

    Attributes:
        unfold_bn: put batch norms back where fusing folded them away: False, True, or the eps they will run with.
        recover_direct_conv: the caller states that nothing in the model was copied or loaded.
        weights: of a prepared model: "master", the float weights that were trained, or "rounded" to their grid.
        fold_bn: of a prepared model: fold each batch norm into its layer, as ``convert`` does.
        activations: what becomes of the quantization of activations; a form that has none refuses the rest.
        partial: describe what can be described, also of a model that cannot be rebuilt as a whole.

    """

    unfold_bn: bool | float = False
    recover_direct_conv: bool = False
    weights: str = "master"
    fold_bn: bool = True
    activations: str = "drop"
    partial: bool = False


@dataclass
class Description:
    """What a model holds.

    Attributes:
        layers: every quantized layer once, in the model's order.
        unknown: what is quantized and of no known kind.
        failures: dotted path of a layer that could not be described -> why.
        certain: there is something to undo even where no layer is described.

    """

    layers: list[Layer] = field(default_factory=list)
    unknown: list[Unconverted] = field(default_factory=list)
    failures: dict[str, QdeqError] = field(default_factory=dict)
    certain: bool = False


class Form(Protocol):
    """One form in which quantized models come. Stateless: one object serves every model.

    Attributes:
        name: what errors call a model of this form, with its article.

    """

    name: str

    def recognise(self, model: object) -> bool:
        """Whether a model comes in this form; reads nothing and never raises."""

    def describe(self, model: Any, options: Options, report: Report) -> Description:
        """Describe every quantized layer; the model stays as it is, and no weight is read.

        Args:
            model: that was recognised.
            options: the caller's.
            report: for builders of users, which write notes to it.

        Raises:
            QdeqError: the model is half converted, or of a kind that the form does not take.

        """

    def rebuild(self, model: Any, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        """Put the float modules in the places of their layers; everything else is copied.

        Args:
            model: that was described; it shares no memory with the result.
            made: the layers with their float modules; ``carrier`` is set to what gives the layer's output in the
                result, where that is not the float module itself.
            options: the caller's.
            report: gets a note of each choice.

        Raises:
            QdeqError: something cannot be copied, or hides.

        """
