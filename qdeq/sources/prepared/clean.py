"""Takes what ``prepare`` put into a model out of a copy of it: observers, fake quantizations, their hooks, qconfigs."""

from __future__ import annotations

from torch import nn
from torch.ao.nn.quantized import FloatFunctional

from qdeq.report import DroppedSource, Report
from qdeq.sources.eager.recognise import is_observing
from qdeq.sources.prepared.describe import OBSERVED
from qdeq.tree.graphs import erase_calls
from qdeq.tree.post_process import CHILD, is_observer_hook
from qdeq.tree.walk import every_module, own_tensors
from qdeq.words import join

__all__ = ["clean"]


def clean(model: nn.Module, report: Report) -> nn.Module:
    """Clean a copy of a prepared model in place; ``report`` gets each tensor that goes."""
    for path, module in every_module(model):
        erase_calls(module, is_observing)
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if is_observer_hook(hook)]:
                del hooks[key]
        module.__dict__.pop("qconfig", None)
        for name, child in list(module._modules.items()):
            if child is None or not is_observing(child):
                continue
            report.dropped += [
                DroppedSource(join(join(path, name), join(at, own)), OBSERVED)
                for at, part in every_module(child)
                for own, _ in own_tensors(part)
            ]
            if isinstance(module, FloatFunctional) or name != CHILD:
                module._modules[name] = nn.Identity()  # the forward calls it
            else:
                del module._modules[name]
    return model
