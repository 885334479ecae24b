"""Modules that ``torch.load`` leaves half made: quantized convolutions of a model that was pickled whole.

``torch.ao.nn.quantized`` pickles a convolution as a tuple of its settings, and what comes back has those and nothing of
what ``nn.Module.__init__`` sets up: no ``_modules``, no hooks, so that it can neither run nor be walked. Its
``__deepcopy__`` sets it up.
"""

from __future__ import annotations

import copy

from torch import nn

from qdeq.errors import QdeqValueError, expected
from qdeq.tree.walk import every_module, plain_values
from qdeq.words import class_name

__all__ = ["whole"]


def whole(model: nn.Module, where: str) -> nn.Module:
    """The model itself, or, if modules in it are half made, a copy in which they are whole.

    Args:
        model: registered modules and those in plain attributes are looked at.
        where: what the model is called in errors.

    Raises:
        QdeqValueError: it has to be copied, and cannot be.

    """
    modules = [module for _, module in every_module(model)]
    inside = [value for module in modules for _, value in plain_values(module) if isinstance(value, nn.Module)]
    broken = next((module for module in (*modules, *inside) if "_modules" not in vars(module)), None)
    if broken is None:
        return model
    try:
        return copy.deepcopy(model)
    except Exception as error:
        got = f"{class_name(broken)} as torch.load leaves it, in a model that cannot be copied ({error})"
        remedy = "Pass its state_dict() from before it was saved, or qdeq.open(path) of the file."
        raise QdeqValueError(expected(where, "modules that can run", got, remedy)) from error
