"""What puts each finding right: a change of a copy of the float model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.diagnosis.kinds import KINDS
from qdeq.diagnosis.results import Finding
from qdeq.diagnosis.sides.integers import PlainTensor
from qdeq.diagnosis.sides.pairs import Pair
from qdeq.sources.eager.mappings import owned_activation

__all__ = ["Repair", "Repairs"]

Repair: TypeAlias = Callable[[nn.Module], Any]


class Repairs:
    """The right values, and how to put them into a copy of the float model.

    The int8 model gives the activations, ``pairs`` (by their path in it, of one shape) the weights and biases.
    """

    def __init__(self, int8_model: nn.Module, pairs: Mapping[str, Pair], plain: list[PlainTensor]) -> None:
        self._int8_model, self._pairs = int8_model, pairs
        self._plain = {tensor.path: tensor for tensor in plain}

    def of(self, item: Finding) -> Repair | None:
        """Return what puts the right value of a finding into a copy of the float model; None where nothing can."""
        if item.kind == "training_mode":
            return lambda model: model.get_submodule(item.module).eval()
        if item.kind == "activation_lost":
            return self._activation(item)
        if item.kind in ("activation_doubled", "activation_added"):
            extra = item.evidence.get("extra", "")
            return (lambda model: model.set_submodule(extra, nn.Identity())) if extra else None
        if item.kind == "quant_stub_lost":
            return lambda model: model.set_submodule(item.module, nn.Identity())
        if item.kind == "parameter_wrong":
            return lambda model: self._set_plain(model, item)
        pair = self._pairs.get(item.module)
        if pair is None or item.kind in ("shape_mismatch", "saturation"):
            return None
        if item.kind == "bn_applied_twice":
            return lambda model: model.set_submodule(pair.norm, nn.Identity())
        about = item.evidence.get("part", KINDS[item.kind].about)
        return (lambda model: _set(model, pair, bias=about == "bias")) if about else None

    def _set_plain(self, model: nn.Module, item: Finding) -> None:
        for tensor in self._plain.values():
            module = dict(model.named_modules()).get(tensor.module)
            if module is None or tensor.module != item.module or tensor.name not in item.evidence["max_error"]:
                continue
            value = tensor.value.clone()
            setattr(module, tensor.name, nn.Parameter(value) if tensor.name in module._parameters else value)

    def _activation(self, item: Finding) -> Repair:
        path = item.module
        if path in self._pairs:
            path = self._pairs[path].norm or self._pairs[path].partner.path
        owner = self._int8_model.get_submodule(item.module)
        if item.evidence["activation"] == "LeakyReLU":
            slope = float(getattr(owner, "negative_slope", 0.01))
            apply: Callable[[Tensor], Tensor] = lambda y: F.leaky_relu(y, slope)  # noqa: E731
        else:
            apply = getattr(nn, item.evidence["activation"])()
        # A float Identity where the activation was: its neighbour in front serves as well if it is missing altogether.
        present = item.evidence.get("layer", path)

        def repair(model: nn.Module) -> None:
            names = dict(model.named_modules())
            at = names.get(path) or names[self._pairs[present].partner.path]
            at.register_forward_hook(lambda module, args, output: apply(output))

        return repair


def _set(model: nn.Module, pair: Pair, *, bias: bool) -> None:
    module = model.get_submodule(pair.partner.module)
    name = pair.partner.parameter
    if pair.use_folded or isinstance(getattr(module, "bn", None), nn.modules.batchnorm._BatchNorm):
        _override(model, module, pair)
    elif bias:
        right = pair.layer.bias
        value = None if right is None else nn.Parameter(right.clone(), requires_grad=False)
        setattr(module, name.replace("weight", "bias"), value)
    else:
        weight = pair.layer.ints.reference().to(pair.partner.weight.dtype)
        setattr(module, name, nn.Parameter(weight, requires_grad=False))


def _override(model: nn.Module, module: Any, pair: Pair) -> None:
    """Let a layer with its batch norm unfolded compute with the int8 side's folded weight and bias.

    The instance's own ``forward`` takes over, so that hooks (fake quantization) still run behind it.
    """
    weight, bias = pair.layer.ints.reference(), pair.layer.bias
    activation = torch.relu if owned_activation(module) is not None else (lambda value: value)

    def run(x: Tensor) -> Tensor:
        if isinstance(module, nn.Linear):
            return activation(F.linear(x, weight, bias))
        return activation(module._conv_forward(x, weight, bias))

    module.forward = run
    if pair.use_folded:
        model.set_submodule(pair.norm, nn.Identity())
