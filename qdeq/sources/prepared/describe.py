"""Prepared classes of torch -> layers: QAT modules with their fake quantizations, fused modules of float layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.qat as nnqat
import torch.ao.nn.qat.dynamic as nnqatd
from torch import Tensor, nn

from qdeq.layers import fused
from qdeq.layers.layer import Activation, Later, Layer, Norm, Source
from qdeq.sources.eager.classes.conv import begin_conv
from qdeq.sources.eager.classes.reference import BAG, TABLE
from qdeq.sources.eager.describe import Context, Describe, Rule, begin
from qdeq.sources.eager.mappings import find_rule
from qdeq.sources.prepared.formulas import folded, rounded, unscaled
from qdeq.tree.walk import every_module, own_tensors
from qdeq.words import class_name, join

__all__ = ["OBSERVED", "is_prepared_class", "norm_of", "rule_of"]

OBSERVED = "an observer or fake quantization: what it measured has no place in a float model"


def _begin_linear(kind: Any, module: Any, path: str) -> Layer:
    return begin(kind, module, path, "in_features", "out_features")


def _begin_table(kind: Any, module: Any, path: str) -> Layer:
    return begin(kind, module, path, *TABLE, *(BAG if kind is nn.EmbeddingBag else ()))


def _layer(
    start: Callable[..., Layer], kind: Any, normed: Any = None, activation: tuple[Any, Any, Any] | None = None
) -> Rule:
    """The rule of a class with a layer of class ``kind``.

    Args:
        start: begins the layer.
        kind: its float class.
        normed: float class that holds a batch norm behind it as its child ``bn``.
        activation: class of the activation, of the layer that applies it, and of the one with the norm that does.

    """

    def describe(module: Any, path: str, context: Context) -> Layer:
        held, norm = _parts_of(module)
        layer = start(kind, held, path)
        layer.source_class = class_name(module)
        keep = norm is not None and not context.fold_bn
        if keep:
            _keep_norm(layer, norm, normed, kind, _name_of(module, norm))
        if activation is not None:
            applied, holder, normed_holder = activation
            args = {"negative_slope": module[-1].negative_slope} if applied is nn.LeakyReLU else {}
            layer.activation = Activation(applied, normed_holder if keep else holder, places=2, args=args)
        _add_weight(layer, module, held, norm, context)
        _drop_rest(layer, module)
        return layer

    return Rule(describe, f"nn.{kind.__name__}")


def _parts_of(module: Any) -> tuple[Any, Any]:
    """The layer and the batch norm, if any, of a prepared module: itself and ``bn``, or children of a Sequential."""
    if isinstance(getattr(module, "weight", None), Tensor):  # QAT classes are Sequentials, too, by name only
        return module, getattr(module, "bn", None)
    return module[0], module[1] if isinstance(module[1], nn.modules.batchnorm._BatchNorm) else None


def _name_of(module: nn.Module, part: Any) -> str:
    return next((name for name, child in module._modules.items() if child is part), "")


def _keep_norm(layer: Layer, norm: Any, normed: Any, kind: Any, name: str) -> None:
    layer.kind, layer.norm = normed, Norm("bn", kind)
    names = ("eps", "momentum", "affine", "track_running_stats")
    layer.args["norm"] = tuple((own, getattr(norm, own)) for own in names)
    for own, value in own_tensors(norm):
        at = join(layer.path, join(name, own))
        layer.add(f"bn.{own}", Source(at, value.detach()))


def _add_weight(layer: Layer, module: Any, held: Any, norm: Any, context: Context) -> None:
    """Add weight and bias: the master ones or the rounded ones, with the batch norm in them or without."""
    at = "" if held is module else _name_of(module, held)
    weight, bias = held.weight.detach(), None if getattr(held, "bias", None) is None else held.bias.detach()
    where, fold = join(layer.path, join(at, "weight")), norm is not None and context.fold_bn
    master: Tensor | Later = Later(lambda: folded(weight, bias, norm)[0]) if fold else weight
    value = (
        master if context.weights == "master" else Later(functools.partial(_rounded, where, module, held, norm, fold))
    )
    layer.add("weight", Source(where, value))
    bias_at = join(layer.path, join(at, "bias"))
    if fold:
        source = bias_at if bias is not None else join(layer.path, join(_name_of(module, norm), "bias"))
        layer.add("bias", Source(source, Later(lambda: folded(weight, bias, norm)[1])))
        layer.read += [join(layer.path, join(_name_of(module, norm), own)) for own, _ in own_tensors(norm)]
        layer.notes.append("batch norm folded in")
    elif bias is not None:
        layer.add("bias", Source(bias_at, bias))
    if layer.kind not in (nn.Embedding, nn.EmbeddingBag):
        layer.args["bias"] = fold or bias is not None


def _rounded(where: str, module: Any, held: Any, norm: Any, fold: bool) -> Tensor:
    weight = held.weight.detach()
    value = rounded(where, weight, getattr(held, "weight_fake_quant", None), norm)
    return value if fold or norm is None else unscaled(value, weight, norm)


def _drop_rest(layer: Layer, module: nn.Module) -> None:
    """Name what observers and fake quantizations hold."""
    accounted = layer.accounted()
    for prefix, part in every_module(module):
        for name, value in own_tensors(part):
            own = join(prefix, name)
            if join(layer.path, own) not in accounted:
                layer.drop(own, OBSERVED, value.item() if value.numel() == 1 else None)


def _norm_relu(kind: Any, holder: Any) -> Rule:
    def describe(module: Any, path: str, context: Context) -> Layer:
        norm = module[0]
        layer = begin(kind, norm, path, "num_features", "eps", "momentum", "affine", "track_running_stats")
        layer.activation = Activation(nn.ReLU, holder)
        for name, value in own_tensors(norm):
            layer.add(name, Source(join(path, f"0.{name}"), value.detach()))
        _drop_rest(layer, module)
        return layer

    return Rule(describe, f"nn.{kind.__name__}")


def _convolutions() -> dict[type[nn.Module], Rule]:
    rules: dict[type[nn.Module], Rule] = {}
    for size in ("1d", "2d", "3d"):
        kind, normed = getattr(nn, f"Conv{size}"), getattr(fused, f"ConvBn{size}")
        relu = nn.ReLU, getattr(fused, f"ConvReLU{size}"), getattr(fused, f"ConvBnReLU{size}")
        rules[getattr(nnqat, f"Conv{size}")] = _layer(begin_conv, kind)
        for home in (nni, nniqat):
            rules[getattr(home, f"ConvReLU{size}")] = _layer(begin_conv, kind, activation=relu)
            rules[getattr(home, f"ConvBn{size}")] = _layer(begin_conv, kind, normed)
            rules[getattr(home, f"ConvBnReLU{size}")] = _layer(begin_conv, kind, normed, relu)
    return rules


_RELU = nn.ReLU, fused.LinearReLU, None
_RULES: dict[type[nn.Module], Rule] = {
    **_convolutions(),
    nnqat.Linear: _layer(_begin_linear, nn.Linear),
    nnqatd.Linear: _layer(_begin_linear, nn.Linear),
    nniqat.LinearReLU: _layer(_begin_linear, nn.Linear, activation=_RELU),
    nniqat.LinearBn1d: _layer(_begin_linear, nn.Linear, fused.LinearBn1d),
    nni.LinearReLU: _layer(_begin_linear, nn.Linear, activation=_RELU),
    nni.LinearBn1d: _layer(_begin_linear, nn.Linear, fused.LinearBn1d),
    nni.LinearLeakyReLU: _layer(_begin_linear, nn.Linear, activation=(nn.LeakyReLU, fused.LinearLeakyReLU, None)),
    nni.LinearTanh: _layer(_begin_linear, nn.Linear, activation=(nn.Tanh, fused.LinearTanh, None)),
    nni.BNReLU2d: _norm_relu(nn.BatchNorm2d, fused.BNReLU2d),
    nni.BNReLU3d: _norm_relu(nn.BatchNorm3d, fused.BNReLU3d),
    nnqat.Embedding: _layer(_begin_table, nn.Embedding),
    nnqat.EmbeddingBag: _layer(_begin_table, nn.EmbeddingBag),
}


def norm_of(module: Any) -> Any:
    """The batch norm of a prepared module; None where it has none."""
    return _parts_of(module)[1]


def is_prepared_class(kind: type[nn.Module]) -> bool:
    """Whether a class exists in prepared models only, for quantization-aware training."""
    return kind in _RULES and kind.__module__.startswith(("torch.ao.nn.qat", "torch.ao.nn.intrinsic.qat"))


def rule_of(kind: type[nn.Module]) -> Rule | None:
    """The rule of exactly this class: of a prepared one, or of one that converted models have, too (stubs, LSTM)."""
    rule = find_rule(kind)
    return _RULES.get(kind) or (None if rule is None else replace(rule, describe=_observed(rule.describe)))


def _observed(describe: Describe) -> Describe:
    """The description of a module that ``prepare`` put observers into."""

    def describe_observed(module: Any, path: str, context: Context) -> Layer:
        layer = describe(module, path, context)
        _drop_rest(layer, module)
        return layer

    return describe_observed
