"""One rebuilt module: the user's attributes and hooks carried over, every source and target tensor accounted for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qdeq.errors import QdeqValueError, expected
from qdeq.report import Report
from qdeq.sources.eager.build import Build, Fused
from qdeq.sources.eager.recognise import quantized_sources
from qdeq.tree.walk import every_module, plain_values
from qdeq.weights.packed import is_packed_weight, packed_bias
from qdeq.words import join

__all__ = ["Rebuilt", "carry_over", "check_account", "detached"]

# Attributes of quantized modules that describe their quantization; everything else a user put there is kept.
_QUANTIZATION_ATTRIBUTES = {
    *("scale", "zero_point", "output_scale", "output_zero_point", "dtype", "version", "transposed"),
    *("weight_dtype", "weight_qscheme", "weight_axis_int", "weight_quant_min", "weight_quant_max", "is_decomposed"),
    *("pruned_weights", "split_gates", "mode", "qconfig", "negative_slope"),
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


@dataclass
class Rebuilt:
    """One rebuilt module: where it came from and, once placed, what it became."""

    path: str
    source: nn.Module
    parent: nn.Module
    item: nn.Module | Fused
    target: nn.Module | None = None
    # What gives the output of the quantized module: the target, or what follows it in its own place.
    carrier: nn.Module | None = None


def carry_over(part: Rebuilt, memo: dict[int, Any], report: Report) -> None:
    """Give the rebuilt module the user's attributes and hooks, bound to the new modules."""
    source, target = part.source, part.target
    assert target is not None  # set by assemble()
    names = _users_attributes(source, target)
    if names:
        memo.update(detached(source))
    for name in names:
        setattr(target, name, copy.deepcopy(source.__dict__[name], memo))
    if source._is_full_backward_hook is not None or any(map(source.__dict__.get, (*_HOOKS, *_LOST_HOOKS))):
        _carry_hooks(part, memo, report)


def _carry_hooks(part: Rebuilt, memo: dict[int, Any], report: Report) -> None:
    source, target = part.source, part.target
    assert target is not None  # set by assemble()
    for name in _HOOKS:
        hooks = getattr(source, name)
        getattr(target, name).update(copy.deepcopy(hooks, memo))
        if hooks and "_with_" not in name and "_always_" not in name:
            report.note(part.path, f"{len(hooks)} {name.strip('_').replace('_', ' ')} kept")
    target._is_full_backward_hook = source._is_full_backward_hook
    for name in _LOST_HOOKS:
        hooks = getattr(source, name)
        if hooks:
            report.note(part.path, f"{len(hooks)} {name.strip('_').replace('_', ' ')} not kept")


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


def check_account(rebuilt: list[Rebuilt], build: Build) -> None:
    """Every source tensor used or named, every target parameter written: anything else is an error."""
    accounted = build.report.accounted_sources()
    written = {entry.target for entry in build.report.entries}
    unused: list[str] = []
    unwritten: set[str] = set()
    for part in rebuilt:
        assert part.target is not None  # set by assemble()
        unused += _unread(part.source, part.path, build, accounted)
        for prefix, module in every_module(part.target):
            at = join(part.path, prefix) if prefix else part.path
            for name, parameter in module._parameters.items():
                if parameter is not None and (parameter.is_meta or join(at, name) not in written):
                    unwritten.add(join(at, name))
    if unused or unwritten:
        got = f"unused sources {unused}, unwritten parameters {sorted(unwritten)}"
        message = expected("model", "every tensor accounted for", got, "The builder of these modules is incomplete.")
        raise QdeqValueError(message)


def _unread(source: nn.Module, path: str, build: Build, accounted: set[str]) -> list[str]:
    """Names of what ``source`` holds that no builder read: tensors, packed weights and their biases, output scales."""
    missing = []
    for prefix, part in every_module(source):
        at = join(path, prefix) if prefix else path
        for name, value in quantized_sources(part):
            if not build.is_used(value):
                missing.append(join(at, name))
            elif is_packed_weight(value) and not build.is_bias_used(value) and packed_bias(value) is not None:
                missing.append(f"{join(at, name)} (its bias)")
        plain = [*part._parameters.items(), *part._buffers.items()]
        names = [name for name, value in plain if value is not None and not value.is_quantized]
        if hasattr(part, "scale") and hasattr(part, "zero_point"):
            names += ["scale", "zero_point"]
        missing += [name for name in dict.fromkeys(join(at, name) for name in names) if name not in accounted]
    return missing
