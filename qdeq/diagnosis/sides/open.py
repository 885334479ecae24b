"""Opens either side of a diagnosis: a model, a state_dict or a checkpoint file."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qdeq.diagnosis.sides.graph import light_copy
from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.files import open as open_archive
from qdeq.sources import form_of, with_modules
from qdeq.sources.form import Form
from qdeq.state_dicts.named import plan_state
from qdeq.state_dicts.parts import Plan
from qdeq.tree.walk import every_module, is_half_made
from qdeq.words import class_name, error_line

__all__ = ["Side", "open_side"]


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a diagnosis."""

    model: nn.Module | None  # that can run; None where there is none
    state: Mapping[str, Any] | None = None  # names to tensors, where only a state_dict is known
    form: Form | None = None  # in which ``source`` comes; None for a state_dict
    source: Any = None  # the model as it was given, which need not be a module; as ``model`` where there is one
    functions: frozenset[str] = frozenset()  # paths of modules of ``model`` that are functions in the model given

    @functools.cached_property
    def plan(self) -> Plan:
        """Everything in the float model's state_dict or file by its float name."""
        return plan_state("float_model", self.state or {})


def open_side(source: object, where: str, *, trust: bool = False) -> Side:
    """Take a model, a state_dict or the path of a checkpoint; ``where`` is the argument's name in errors.

    With ``trust`` files that hold a whole pickled model or TorchScript are read, too, which runs their code.

    Raises:
        QdeqTypeError: something else.
        QdeqValueError: a file that cannot be read.

    """
    if isinstance(source, str | Path):
        source = _load(Path(source), where, trust)
    if isinstance(source, nn.Module) and any(is_half_made(module) for _, module in every_module(source)):
        source = light_copy(source)
    form = form_of(source)
    if form is not None:
        if not isinstance(source, nn.Module) or isinstance(source, torch.jit.ScriptModule):
            return Side(None, form=form, source=source)  # a script gives no values between its layers
        model = with_modules(source)
        return Side(model, form=form, source=model, functions=_added(model, source))
    if isinstance(source, Mapping):
        inner = source.get("state_dict", source)
        return Side(None, inner if isinstance(inner, Mapping) else source)
    remedy = "Pass a torch.nn.Module, a state_dict or the path of a checkpoint."
    raise QdeqTypeError(expected(where, "a model, a state_dict or a path", class_name(source), remedy))


def _added(model: nn.Module | None, source: object) -> frozenset[str]:
    if model is None or model is source or not isinstance(source, nn.Module):
        return frozenset()
    return frozenset(path for path, _ in every_module(model)) - {path for path, _ in every_module(source)}


def _load(path: Path, where: str, trust: bool) -> object:
    """Read a checkpoint: by :func:`qdeq.open`, which runs no code of the file, or with trust the model in it."""
    if not path.is_file():
        raise QdeqValueError(expected(where, "an existing file", str(path), "Check the path."))
    if not trust or path.suffix == ".safetensors":
        return open_archive(path)
    with warnings.catch_warnings():
        # torch warns about its own TypedStorage whenever it reads a quantized tensor.
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        try:
            return torch.load(path, weights_only=False, map_location="cpu")
        except Exception as error:
            what, remedy = "a checkpoint that torch.load reads", "Pass a file that torch.save wrote."
            raise QdeqValueError(expected(str(path), what, error_line(error), remedy)) from error
