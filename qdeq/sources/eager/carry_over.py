"""What a float module takes over from the quantized one: the user's attributes and hooks."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from qdeq.report import Report
from qdeq.sources.eager.recognise import quantized_sources
from qdeq.tree.post_process import is_observer_hook
from qdeq.tree.walk import plain_values

__all__ = ["carry_over", "detached"]

# Attributes of quantized modules that describe their quantization; everything else a user put there is kept.
_QUANTIZATION_ATTRIBUTES = {
    *("scale", "zero_point", "output_scale", "output_zero_point", "dtype", "version", "transposed"),
    *("weight_dtype", "weight_qscheme", "weight_axis_int", "weight_quant_min", "weight_quant_max", "is_decomposed"),
    *("pruned_weights", "split_gates", "mode", "qconfig", "freeze_bn", "negative_slope"),
    *("initial_hidden_state_qparams", "initial_cell_state_qparams", "hidden_state_dtype", "cell_state_dtype"),
}
# What reference RNNs call the same, after the name of each weight.
_QUANTIZATION_SUFFIXES = ("_qscheme", "_dtype", "_axis_int")
_HOOKS = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)
# Hooks on a state_dict know the names and objects of the quantized module.
_LOST_HOOKS = (
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def carry_over(source: nn.Module, target: nn.Module, path: str, memo: dict[int, Any], report: Report) -> None:
    """Give a float module the user's attributes and hooks of the quantized one, bound to the new modules."""
    names = _users_attributes(source, target)
    if names:
        memo.update(detached(source))
    for name in names:
        setattr(target, name, copy.deepcopy(source.__dict__[name], memo))
    for name in _HOOKS:
        hooks = {key: hook for key, hook in (source.__dict__.get(name) or {}).items() if not is_observer_hook(hook)}
        if hooks:
            getattr(target, name).update(copy.deepcopy(hooks, memo))
            if "_with_" not in name and "_always_" not in name:
                report.note(path, f"{len(hooks)} {name.strip('_').replace('_', ' ')} kept")
    target._is_full_backward_hook = source.__dict__.get("_is_full_backward_hook")
    for name in _LOST_HOOKS:
        lost = [hook for hook in (source.__dict__.get(name) or {}).values() if not _is_of_packed_weights(hook)]
        if lost:
            report.note(path, f"{len(lost)} {name.strip('_').replace('_', ' ')} not kept")


def _is_of_packed_weights(hook: Any) -> bool:
    """Whether torch registered a hook on a state_dict, for the packed weights that an FX graph holds itself."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.ao.quantization.fx")


def detached(module: nn.Module) -> dict[int, Any]:
    """A memo for tensors that deepcopy refuses: results of autograd that a module keeps as plain attributes."""
    tensors = [value for _, value in plain_values(module) if isinstance(value, Tensor) and not value.is_leaf]
    return {id(tensor): tensor.detach().clone() for tensor in tensors}


def _users_attributes(source: nn.Module, target: nn.Module) -> list[str]:
    """Names of the plain attributes of ``source`` that describe neither its quantization nor the layer itself."""
    names = source.__dict__.keys() - target.__dict__.keys() - _QUANTIZATION_ATTRIBUTES
    names = {name for name in names if not name.startswith("_") and not name.endswith(_QUANTIZATION_SUFFIXES)}
    if names:
        names -= {*target._parameters, *target._buffers, *target._modules}
        names -= {name for name, _ in quantized_sources(source)}
    return [name for name in source.__dict__ if name in names] if names else []
