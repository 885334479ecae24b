"""Prepared models, eager or FX: their float weights, master or rounded, in plain modules without observers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qdeq.errors import refuse
from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.assemble import assemble
from qdeq.sources.eager.describe import Context
from qdeq.sources.eager.recognise import is_observing, is_quantized_module
from qdeq.sources.eager.walk import Found, describe_layers, find_layers
from qdeq.sources.form import Description, Options
from qdeq.sources.prepared.clean import clean
from qdeq.sources.prepared.describe import is_prepared_class, norm_of, rule_of
from qdeq.tree.walk import every_module

__all__ = ["PREPARED"]


class _Prepared:
    name = "a prepared model"

    def recognise(self, model: object) -> bool:
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            return False
        modules = [module for _, module in every_module(model)]
        prepared = any(is_observing(module) or is_prepared_class(type(module)) for module in modules)
        return prepared and not any(is_quantized_module(module) for module in modules)

    def describe(self, model: nn.Module, options: Options, report: Report) -> Description:
        context = Context(report, weights=options.weights, fold_bn=options.fold_bn)
        if options.activations != "drop":
            remedy = "Convert the model and pass the result: only then are the scales of activations final."
            refuse("activations", '"drop" for a prepared model', repr(options.activations), remedy)
        found = describe_layers(_find(model), context)
        found.certain = True
        return found

    def rebuild(self, model: nn.Module, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        found = _find(model)
        modules = {path: module for path, module, _, _ in found}
        norms: list[tuple[Any, Any]] = [
            (part.module.bn, modules[part.layer.path]) for part in made if part.layer.norm is not None
        ]
        result = clean(assemble(model, made, found, options, report), report)
        for norm, source in norms:
            norm.train(norm_of(source).training)  # it may be frozen inside a layer that trains
        kind = (
            "master: the float ones"
            if options.weights == "master"
            else "rounded to the grid of their fake quantization"
        )
        report.note("", f"a prepared model; weights {kind}")
        return result


def _find(model: nn.Module) -> list[Found]:
    return find_layers(model, rule_of, lambda module: False)


PREPARED = _Prepared()
