"""Eager models after ``torch.ao.quantization.convert``: trees of modules, the quantized ones among the others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from qdeq.errors import QdeqValueError, expected
from qdeq.layers.make import Made
from qdeq.report import Report
from qdeq.sources.eager.assemble import assemble
from qdeq.sources.eager.recognise import unsupported_form
from qdeq.sources.eager.walk import describe_all, find_quantized
from qdeq.sources.form import Description, Options
from qdeq.tree.walk import every_module, own_tensors
from qdeq.words import join

__all__ = ["EAGER"]


class _Eager:
    name = "an eager model"

    def recognise(self, model: object) -> bool:
        return isinstance(model, nn.Module)

    def describe(self, model: nn.Module, options: Options, report: Report) -> Description:
        if not options.partial:
            _check(model)
        return describe_all(model, options, report)

    def rebuild(self, model: nn.Module, made: Sequence[Made], options: Options, report: Report) -> nn.Module:
        return assemble(model, made, find_quantized(model), options, report)


def _check(model: nn.Module) -> None:
    form = unsupported_form(model)
    if form is not None:
        raise QdeqValueError(expected("model", "an eager model after convert()", *form))
    for path, module in every_module(model):
        for name, tensor in own_tensors(module):
            if tensor.is_meta:
                remedy = "Load its weights before converting it."
                raise QdeqValueError(expected(join(path, name), "a tensor with data", "one on the meta device", remedy))


EAGER = _Eager()
