"""A child that post-processes what a module gives, as in torch's prepared models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import nn
from torch.ao.nn.quantized import FloatFunctional

__all__ = ["CHILD", "Hook", "install", "is_observer_hook", "post_process", "recompute", "remove"]

Hook: TypeAlias = Callable[[nn.Module, Any, Any], Any]

CHILD = "activation_post_process"


def post_process(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: passes the output of a module on through its ``activation_post_process``."""
    del args
    return module.get_submodule(CHILD)(output)


def recompute(module: nn.Module, args: Any, output: Any) -> Any:
    """Forward hook: lets a module's ``activation_post_process`` compute the output anew, from the module's inputs."""
    return module.get_submodule(CHILD)(output, module, *args)


def is_observer_hook(hook: Any) -> bool:
    """Whether a hook is one of those that torch's ``prepare`` registers, which pass values on to an observer."""
    return getattr(hook, "__module__", None) == "torch.ao.quantization.quantize"


def install(module: nn.Module, child: nn.Module, hook: Hook = post_process) -> None:
    """Let ``child`` post-process every output of ``module``, called by ``hook``.

    torch's FloatFunctional calls a child of this name itself; any other module gets a forward hook, which runs
    before the user's own hooks: those see what the int8 model's hooks saw.
    """
    child.train(module.training)
    setattr(module, CHILD, child)
    if not _calls_child_itself(module):
        module.register_forward_hook(hook, prepend=True)


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
        if hook in (post_process, recompute):
            del module._forward_hooks[key]
