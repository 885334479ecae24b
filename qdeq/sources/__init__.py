"""Where quantized models come from: one package or file for each form, and the only place where a form is named."""

from __future__ import annotations

from qdeq.sources.eager.form import EAGER
from qdeq.sources.form import Form
from qdeq.sources.fx.form import FX
from qdeq.sources.prepared.form import PREPARED
from qdeq.sources.torchscript.form import TORCHSCRIPT

__all__ = ["FORMS", "form_of"]

FORMS: list[Form] = [TORCHSCRIPT, FX, PREPARED, EAGER]
"""The known forms, in the order in which they are asked."""


def form_of(model: object) -> Form | None:
    """The form that a model comes in; None for something that no form recognises."""
    return next((form for form in FORMS if form.recognise(model)), None)
