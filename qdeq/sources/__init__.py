"""Where quantized models come from: one package or file for each form, and the only place where a form is named."""

from __future__ import annotations

from torch import nn

from qdeq.sources.eager.form import EAGER
from qdeq.sources.form import Form
from qdeq.sources.fx.form import FX
from qdeq.sources.fx.modules import with_modules as graphs_with_modules
from qdeq.sources.prepared.form import PREPARED
from qdeq.sources.torchscript.form import TORCHSCRIPT

__all__ = ["FORMS", "form_of", "with_modules"]

FORMS: list[Form] = [TORCHSCRIPT, FX, PREPARED, EAGER]
"""The known forms, in the order in which they are asked."""


def form_of(model: object) -> Form | None:
    """The form that a model comes in; None for something that no form recognises."""
    return next((form for form in FORMS if form.recognise(model)), None)


def with_modules(model: nn.Module) -> nn.Module:
    """The same int8 model with each layer as a module at its path, to be run alone and hooked; shares its weights.

    Most models are so already, and are given back themselves.
    """
    return graphs_with_modules(model) if FX.recognise(model) else model
