"""Quantized multi-head attention: three projections that ``nn.MultiheadAttention`` keeps in one tensor, or names anew.

The names: :mod:`qdeq.layers.names`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from qdeq.layers.names import PROJECTIONS, UNUSED_PROJECTIONS, UNUSED_PROJECTIONS_REASON, projection_weights
from qdeq.state_dicts.parts import Plan, ShapeOf, Stack, Target, target_shape
from qdeq.words import join

__all__ = ["keeps_projections", "name_attentions"]

_WITNESS = "q_scaling_product"  # a functional that only torch's own class has


def keeps_projections(model: nn.Module | None) -> bool:
    """Whether a float model has ``linear_Q`` and its like: a class of the user's own, whose names stay."""
    return model is not None and any(name.endswith(f"{PROJECTIONS[0]}.weight") for name in model.state_dict())


def name_attentions(plan: Plan, keys: Iterable[str], shape_of: ShapeOf) -> None:
    """Give the projections of every multi-head attention among a checkpoint's keys their float names in ``plan``."""
    paths = {key[: key.index(_WITNESS)].rstrip(".") for key in keys if f".{_WITNESS}." in f".{key}"}
    for path in paths:
        weights = [join(path, f"{part}.weight") for part in PROJECTIONS]
        biases = [join(path, f"{part}.bias") for part in PROJECTIONS]
        shapes = [_shape(plan, name, shape_of) for name in weights]
        bias_shapes = [_shape(plan, name, shape_of) for name in biases]
        if not all(len(shape) == 2 for shape in shapes) or set(bias_shapes) not in ({()}, {shapes[0][:1]}):
            continue  # not as torch's class would have it: the names stay
        names = projection_weights(one_width=len(set(shapes)) == 1)
        renamed = {old: join(path, name) for old, name in zip(weights, names, strict=True)}
        if all(bias_shapes):
            renamed |= dict.fromkeys(biases, join(path, "in_proj_bias"))
        _rename(plan, path, renamed)


def _shape(plan: Plan, name: str, shape_of: ShapeOf) -> tuple[int, ...]:
    """The shape of a target; () where there is none of that name."""
    return (target_shape(plan.targets[name].value, shape_of) or ()) if name in plan.targets else ()


def _rename(plan: Plan, path: str, renamed: dict[str, str]) -> None:
    """Give targets other names; those that share a name become a :class:`Stack`. The order stays."""
    for name in (join(path, unused) for unused in UNUSED_PROJECTIONS):
        if name in plan.targets:  # a prepared model still holds the float class's own, which it never reads
            plan.dropped[plan.targets.pop(name).source] = UNUSED_PROJECTIONS_REASON
    order = list(renamed)
    groups: dict[str, list[str]] = {}
    for old in plan.targets:
        groups.setdefault(renamed.get(old, old), []).append(old)
    targets, plan.targets = plan.targets, {}
    for name, names in groups.items():
        plan.targets[name] = targets[names[0]]
        if len(names) > 1:
            found = [targets[old] for old in sorted(names, key=order.index)]
            sources = tuple(target.source for target in found)
            plan.targets[name] = Target(Stack(tuple(target.value for target in found), sources), ", ".join(sources))
