"""A child that post-processes what a module gives, as in torch's prepared models."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.ao.nn.quantized import FloatFunctional

__all__ = ["CHILD", "install", "is_observer_hook", "remove"]

CHILD = "activation_post_process"


def post_process(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: passes the output of a module on through its ``activation_post_process``."""
    del args
    return module.get_submodule(CHILD)(output)


def is_observer_hook(hook: Any) -> bool:
    """Whether a hook is one of those that torch's ``prepare`` registers, which pass values on to an observer."""
    return getattr(hook, "__module__", None) == "torch.ao.quantization.quantize"


def install(module: nn.Module, child: nn.Module) -> None:
    """Let ``child`` post-process every output of ``module``.

    torch's FloatFunctional calls a child of this name itself; any other module gets a forward hook, which runs
    before the user's own hooks: those see what the int8 model's hooks saw.
    """
    child.train(module.training)
    setattr(module, CHILD, child)
    if not _calls_child_itself(module):
        module.register_forward_hook(post_process, prepend=True)


def _calls_child_itself(module: nn.Module) -> bool:
    return isinstance(module, FloatFunctional)


def remove(module: nn.Module, kind: type[nn.Module]) -> None:
    """Take a child of class ``kind`` that :func:`install` put in out of ``module`` again; any other stays."""
    if not isinstance(module._modules.get(CHILD), kind):
        return
    if _calls_child_itself(module):
        module.activation_post_process = nn.Identity()
        return
    delattr(module, CHILD)
    for key, hook in list(module._forward_hooks.items()):
        if hook is post_process:
            del module._forward_hooks[key]
