"""TorchScript, scripted, traced or frozen: a live module, alone or inside an eager model, or a file of one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from qdeq.errors import refuse
from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.assemble import assemble
from qdeq.sources.eager.describe import Context
from qdeq.sources.eager.walk import describe_layers
from qdeq.sources.form import Description, Options
from qdeq.sources.torchscript.nested import Scripts, eager_layers, quantized_scripts
from qdeq.sources.torchscript.single import describe_script, float_graph
from qdeq.tree.walk import every_module

__all__ = ["TORCHSCRIPT"]


class _TorchScript:
    name = "a TorchScript module"

    def recognise(self, model: object) -> bool:
        if isinstance(model, torch.jit.ScriptModule | str | os.PathLike):
            return True
        return isinstance(model, nn.Module) and bool(quantized_scripts(model))

    def describe(self, model: Any, options: Options, report: Report) -> Description:
        if not _holds_scripts(model):
            return describe_script(model, "")
        if any(isinstance(part, fx.GraphModule) for _, part in every_module(model)):
            remedy = "Convert them one by one, and put the float ones in their places."
            refuse("model", "either scripts or FX graphs in an eager model", "both", remedy)
        found = describe_layers(eager_layers(model), Context(report, options.recover_direct_conv))
        for path, script in quantized_scripts(model):
            inner = describe_script(script, path)
            found.layers += inner.layers
            found.failures |= inner.failures
        found.certain = True
        return found

    def rebuild(self, model: Any, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        if not _holds_scripts(model):
            return float_graph(model, "", made, options.activations, report)
        scripts = Scripts(quantized_scripts(model), made, options.activations, report)
        found = eager_layers(model)
        paths = {path for path, _, _, _ in found}
        return assemble(model, [part for part in made if part.layer.path in paths], found, options, report, scripts)


def _holds_scripts(model: object) -> bool:
    """Whether a model is an eager one with scripts inside it."""
    return isinstance(model, nn.Module) and not isinstance(model, torch.jit.ScriptModule)


TORCHSCRIPT = _TorchScript()
