"""TorchScript, scripted, traced or frozen: a live module, or the file that ``torch.jit.save`` wrote."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.files.torch_archive.script import Script, open_script
from qdeq.layers.layer import Layer
from qdeq.layers.make import Made
from qdeq.report import DroppedSource, Report
from qdeq.sources.form import Description, Options
from qdeq.sources.graph.emit import emit
from qdeq.sources.graph.layers import describe_operators
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.parameters import Parameters, describe_parameters
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.torchscript.follow import Followed, follow
from qdeq.weights.direct_conv import ConvGeometry, is_direct_weight, unreadable_weight
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import error_line, join

__all__ = ["TORCHSCRIPT"]

_FOLLOWED: WeakKeyDictionary[Layer, Followed] = WeakKeyDictionary()
"""Layer -> the graph that it was found in: following the code once more takes as long as all the rest."""

_Source = torch.jit.ScriptModule | str | os.PathLike[str]


class _TorchScript:
    name = "a TorchScript module"

    def recognise(self, model: object) -> bool:
        return isinstance(model, torch.jit.ScriptModule | str | os.PathLike)

    def describe(self, model: _Source, options: Options, report: Report) -> Description:
        followed = follow(_open(model))
        found = describe_operators(followed.program, "")
        found.failures |= _lost(found.layers, followed.program)
        found.layers += describe_parameters(followed.program, "")
        _FOLLOWED.update(dict.fromkeys(found.layers, followed))
        return found

    def rebuild(self, model: _Source, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        followed = next((_FOLLOWED[part.layer] for part in made), None) or follow(_open(model))
        for text in followed.notes:
            report.note("", text)
        report.dropped += [DroppedSource(name, "the script's forward does not use it") for name in followed.unused]
        layers, parameters = {}, {}
        for part in made:
            part.placed = True
            if isinstance(part.module, Parameters):
                path = part.layer.path
                parameters.update({join(path, name): value for name, value in part.module.named_parameters()})
            else:
                layers[part.layer.path] = part
        return emit(followed.program, Materials("", options.activations, report, layers, parameters, _copy)).module


def _lost(layers: list[Layer], program: Program) -> dict[str, QdeqError]:
    """Layers whose weights torch saved as uninitialized memory."""
    found: dict[str, QdeqError] = {}
    for layer in layers:
        source = layer.parts[0].sources[0]
        packed = program.attributes.get(source.held)
        if isinstance(packed, Packed) and isinstance(packed.weight, QuantizedWeight):
            weight = packed.weight
            geometry = ConvGeometry(packed.transpose, packed.stride, packed.padding, packed.dilation, packed.groups)
            if is_direct_weight(weight.shape, weight.int_repr.stride(), weight.qscheme, geometry):
                found[layer.path] = QdeqValueError(unreadable_weight(layer.path))
    return found


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
