"""One script -> its layers, and the float graph that stands for it; alone or somewhere in a model."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.files.torch_archive.script import Script, open_script
from qdeq.layers.layer import Layer
from qdeq.layers.make import Made
from qdeq.report import DroppedSource, Report
from qdeq.sources.form import Description
from qdeq.sources.graph.emit import emit
from qdeq.sources.graph.layers import describe_operators
from qdeq.sources.graph.materials import Materials
from qdeq.sources.graph.parameters import Parameters, describe_parameters
from qdeq.sources.graph.program import Packed, Program
from qdeq.sources.graph.schema import operator_of
from qdeq.sources.graph.targets import quantizing
from qdeq.sources.torchscript.follow import Followed, follow
from qdeq.weights.direct_conv import ConvGeometry, is_direct_weight, unreadable_weight
from qdeq.weights.weight import QuantizedWeight
from qdeq.words import error_line, join

__all__ = ["Source", "describe_script", "float_graph"]

_FOLLOWED: WeakKeyDictionary[Layer, Followed] = WeakKeyDictionary()
"""Layer -> the graph that it was found in: following the code once more takes as long as all the rest."""

Source = torch.jit.ScriptModule | str | os.PathLike[str]
"""What a script comes as: live, or the file that ``torch.jit.save`` wrote."""


def describe_script(source: Source, prefix: str) -> Description:
    """Describe every layer of a script; nothing of it is run.

    Args:
        source: the script.
        prefix: its dotted path in the model; empty for the model itself.

    Raises:
        QdeqValueError: its forward does what no float graph can say, or it cannot be read.

    """
    followed = follow(_open(source, prefix))
    found = describe_operators(followed.program, prefix)
    found.certain = any(map(_quantizes, followed.program.graph.nodes))
    found.failures |= _lost(found.layers, followed.program)
    found.layers += describe_parameters(followed.program, prefix)
    _FOLLOWED.update(dict.fromkeys(found.layers, followed))
    return found


def float_graph(source: Source, prefix: str, made: Sequence[Made], mode: str, report: Report) -> nn.Module:
    """Build the float graph of a script that was described.

    Args:
        source: the script.
        prefix: its dotted path in the model.
        made: its layers, and perhaps others'.
        mode: what becomes of the quantization of activations.
        report: gets what is dropped, and choices.

    """
    own = [part for part in made if part.layer in _FOLLOWED and _is_inside(part.layer.path, prefix)]
    followed = next((_FOLLOWED[part.layer] for part in own), None) or follow(_open(source, prefix))
    for text in followed.notes:
        report.note(prefix, text)
    for name in followed.unused:
        report.dropped.append(DroppedSource(join(prefix, name), "the script's forward does not use it"))
    before = len(f"{prefix}.") if prefix else 0
    layers, parameters = {}, {}
    for part in own:
        part.placed = True
        path = part.layer.path[before:]
        if isinstance(part.module, Parameters):
            parameters.update({join(path, name): value for name, value in part.module.named_parameters()})
        else:
            layers[path] = part
    return emit(followed.program, Materials(prefix, mode, report, layers, parameters, _copy)).module


def _is_inside(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _quantizes(node: fx.Node) -> bool:
    """Whether a node is there in int8 models alone."""
    return operator_of(node.target).startswith("quantized::") or quantizing(node) is not None


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


def _open(source: Source, prefix: str) -> Script:
    if not isinstance(source, torch.jit.ScriptModule):
        return open_script(source)
    buffer = io.BytesIO()
    try:
        torch.jit.save(source, buffer)
    except RuntimeError as error:
        remedy = "Pass the model that it was made from."
        raise QdeqValueError(
            expected(prefix or "model", "a script that torch can save", error_line(error), remedy)
        ) from error
    return open_script(buffer.getvalue(), prefix or "model")


def _copy(value: Tensor) -> Tensor:
    """A tensor of the archive in memory of its own."""
    copied = value.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copied, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copied
