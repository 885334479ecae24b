"""TorchScript, scripted, traced or frozen: a live module, or the file that ``torch.jit.save`` wrote."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqValueError, expected
from qdeq.files.torch_archive.script import Script, open_script
from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.form import Description, Options
from qdeq.sources.graph.emit import emit
from qdeq.sources.graph.layers import describe_operators
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.parameters import Parameters, describe_parameters
from qdeq.sources.torchscript.follow import follow
from qdeq.words import error_line, join

__all__ = ["TORCHSCRIPT"]

_Source = torch.jit.ScriptModule | str | os.PathLike[str]


class _TorchScript:
    name = "a TorchScript module"

    def recognise(self, model: object) -> bool:
        return isinstance(model, torch.jit.ScriptModule | str | os.PathLike)

    def describe(self, model: _Source, options: Options, report: Report) -> Description:
        program = follow(_open(model)).program
        found = describe_operators(program, "")
        found.layers += describe_parameters(program, "")
        return found

    def rebuild(self, model: _Source, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        followed = follow(_open(model))
        for text in followed.notes:
            report.note("", text)
        layers, parameters = {}, {}
        for part in made:
            part.placed = True
            if isinstance(part.module, Parameters):
                path = part.layer.path
                parameters.update({join(path, name): value for name, value in part.module.named_parameters()})
            else:
                layers[part.layer.path] = part
        return emit(followed.program, Materials("", options.activations, report, layers, parameters, _copy)).module


def _open(model: _Source) -> Script:
    if not isinstance(model, torch.jit.ScriptModule):
        return open_script(model)
    buffer = io.BytesIO()
    try:
        torch.jit.save(model, buffer)
    except RuntimeError as error:
        remedy = "Pass the model that it was made from."
        raise QdeqValueError(expected("model", "a script that torch can save", error_line(error), remedy)) from error
    return open_script(buffer.getvalue(), "model")


def _copy(value: Tensor) -> Tensor:
    """A tensor of the archive in memory of its own."""
    copied = value.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copied, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copied


TORCHSCRIPT = _TorchScript()
