"""The list of what is supported: quantized class -> its description. Classes are matched exactly, never by inheritance.

:func:`register` adds classes of users to it.
"""

from __future__ import annotations

import torch.ao.nn.intrinsic as nni
import torch.ao.nn.intrinsic.qat as nniqat
import torch.ao.nn.intrinsic.quantized as nniq
from torch import nn

from qdeq.errors import QdeqTypeError, expected
from qdeq.layers.fused import ConvAddReLU2d
from qdeq.sources.eager.classes import (
    activation,
    attention,
    conv,
    conv_transpose,
    embedding,
    functional,
    linear,
    lstm,
    norm,
    reference,
    rnn,
    stubs,
)
from qdeq.sources.eager.describe import Rule
from qdeq.sources.eager.registered import UserBuilder, registered
from qdeq.words import class_name

__all__ = ["NOT_REBUILT", "RULES", "find_rule", "float_class", "owned_activation", "register", "why_not_rebuilt"]

_FAMILIES = (
    *(linear, conv, conv_transpose, norm, activation, functional, embedding),
    *(rnn, lstm, attention, reference, stubs),
)

RULES: dict[type[nn.Module], Rule] = {source: rule for family in _FAMILIES for source, rule in family.RULES.items()}

_REGISTERED: dict[type[nn.Module], Rule] = {}


def find_rule(quantized_class: type[nn.Module]) -> Rule | None:
    """The rule of exactly this class; what was registered goes before the project's own."""
    return _REGISTERED.get(quantized_class) or RULES.get(quantized_class)


def register(quantized_class: type[nn.Module], builder: UserBuilder) -> None:
    """Teach :func:`qdeq.dequantize_model` a quantized class of your own.

    The class is matched exactly: a subclass needs its own call. Registering a class again replaces its builder, also
    where qdeq has one itself.

    Args:
        quantized_class: the class of the quantized module.
        builder: called as ``builder(module, path, report)`` with the quantized module, its dotted path and the
            :class:`qdeq.Report` of the conversion; returns a new float module that shares no memory with ``module``.
            Every parameter it returns is listed in the report by itself; ``report.note(path, text)`` adds words.

    Raises:
        QdeqTypeError: ``quantized_class`` is not a module class, or ``builder`` cannot be called.

    """
    if not (isinstance(quantized_class, type) and issubclass(quantized_class, nn.Module)):
        remedy = "Pass the class itself, not an instance."
        got = quantized_class.__name__ if isinstance(quantized_class, type) else class_name(quantized_class)
        raise QdeqTypeError(expected("quantized_class", "a subclass of torch.nn.Module", got, remedy))
    if not callable(builder):
        remedy = "Pass a function builder(module, path, report) that returns a float module."
        raise QdeqTypeError(expected("builder", "a function", class_name(builder), remedy))
    _REGISTERED[quantized_class] = Rule(registered(builder), "")


def float_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of ``torch.nn`` that a quantized class becomes; any other class itself."""
    rule = RULES.get(kind)
    becomes: type[nn.Module] = kind if rule is None else getattr(nn, rule.becomes.removeprefix("nn."), kind)
    return becomes


# Classes that apply an activation themselves, beside the layer: quantized, held by qdeq, fused, and prepared ones.
_OWNED: dict[type[nn.Module], type[nn.Module]] = {
    kind: rule.activation.kind
    for source, rule in RULES.items()
    if rule.activation is not None
    for kind in (source, rule.activation.holder)
}
_OWNED |= dict.fromkeys((nniq.ConvAddReLU2d, ConvAddReLU2d, nni.ConvAddReLU2d), nn.ReLU)
_OWNED |= dict.fromkeys((nni.ConvReLU1d, nni.ConvReLU2d, nni.ConvReLU3d), nn.ReLU)
_OWNED |= dict.fromkeys((nni.LinearReLU, nni.BNReLU2d, nni.BNReLU3d), nn.ReLU)
_OWNED |= {nni.LinearLeakyReLU: nn.LeakyReLU, nni.LinearTanh: nn.Tanh}
_OWNED |= dict.fromkeys((nniqat.ConvReLU1d, nniqat.ConvReLU2d, nniqat.ConvReLU3d, nniqat.LinearReLU), nn.ReLU)
_OWNED |= dict.fromkeys((nniqat.ConvBnReLU1d, nniqat.ConvBnReLU2d, nniqat.ConvBnReLU3d), nn.ReLU)
_OWNED |= dict.fromkeys((nni.ConvBnReLU1d, nni.ConvBnReLU2d, nni.ConvBnReLU3d), nn.ReLU)


def owned_activation(module: nn.Module) -> type[nn.Module] | None:
    """The activation that a module applies itself, beside its layer; None for a module that applies none."""
    return next((_OWNED[cls] for cls in type(module).__mro__ if cls in _OWNED), None)


_PART = "part of the class that holds it, read with it"
_BASE = "base class"
_FLOAT = "float already: copied as it is"
_PREPARED = "of a prepared model, which comes back with its float weights; an error beside converted modules"

# Classes of torch.ao.nn that are not rebuilt by themselves, and why: dotted name, or namespace.* for all others in it.
NOT_REBUILT: dict[str, str] = {
    "torch.ao.nn.quantized.LinearPackedParams": _PART,
    "torch.ao.nn.quantized.EmbeddingPackedParams": _PART,
    "torch.ao.nn.quantized.dynamic.PackedParameter": _PART,
    "torch.ao.nn.sparse.quantized.linear.LinearPackedParams": _PART,
    "torch.ao.nn.quantizable._LSTMLayer": _PART,
    "torch.ao.nn.quantizable._LSTMSingleLayer": _PART,
    "torch.ao.nn.quantized.WeightedQuantizedModule": _BASE,
    "torch.ao.nn.quantized._BatchNorm": _BASE,
    "torch.ao.nn.quantized._ConvNd": _BASE,
    "torch.ao.nn.quantized._ConvTransposeNd": _BASE,
    "torch.ao.nn.quantized.dynamic.RNNBase": _BASE,
    "torch.ao.nn.quantized.dynamic.RNNCellBase": _BASE,
    "torch.ao.nn.quantized.reference.ReferenceQuantizedModule": _BASE,
    "torch.ao.nn.quantized.reference.RNNBase": _BASE,
    "torch.ao.nn.quantized.reference.RNNCellBase": _BASE,
    "torch.ao.nn.quantized.reference._ConvNd": _BASE,
    "torch.ao.nn.quantized.reference._ConvTransposeNd": _BASE,
    "torch.ao.nn.quantized.FloatFunctional": _FLOAT,
    "torch.ao.nn.intrinsic.*": _FLOAT,
    "torch.ao.nn.intrinsic.qat.*": _PREPARED,
    "torch.ao.nn.qat.*": _PREPARED,
    "torch.ao.nn.qat.dynamic.*": _PREPARED,
}


def why_not_rebuilt(name: str) -> str | None:
    """Why a class of torch.ao.nn is not rebuilt by itself; None for one that the lists do not know.

    Args:
        name: dotted name as :func:`qdeq.words.class_name` gives it.
    """
    return NOT_REBUILT.get(name) or NOT_REBUILT.get(name.rpartition(".")[0] + ".*")
