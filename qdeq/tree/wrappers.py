"""The wrappers that ``torch.ao.quantization.add_quant_dequant`` puts around single layers, taken away again."""

from __future__ import annotations

from torch import nn
from torch.ao.quantization import QuantWrapper

from qdeq.tree.walk import children, every_module
from qdeq.words import join

__all__ = ["unwrap"]

_CHILDREN = ["quant", "dequant", "module"]


def unwrap(model: nn.Module) -> list[tuple[str, str]]:
    """Put each wrapped layer in the place of its wrapper, so that it has its name in the float class again.

    ``add_quant_dequant`` wraps modules without children. A wrapper around more than a layer was written by the user, as
    was one that has hooks, and stays.

    Returns:
        (dotted path of the layer before, and after).

    """
    moved = []
    for path, module in every_module(model):
        for name, child in children(module):
            if _is_automatic(child):
                module._modules[name] = child.get_submodule("module")
                at = join(path, name)
                moved.append((f"{at}.module", at))
    return moved


def _is_automatic(module: nn.Module) -> bool:
    if type(module) is not QuantWrapper or module._forward_hooks or module._forward_pre_hooks:
        return False
    names = [name for name, _ in children(module)]
    stubs_are_gone = all(type(module._modules.get(name)) is nn.Identity for name in _CHILDREN[:2])
    return names == _CHILDREN and stubs_are_gone and not children(module.get_submodule("module"))
