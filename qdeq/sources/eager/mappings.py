"""The list of what is supported: quantized class -> builder. Classes are matched exactly, never by inheritance."""

from __future__ import annotations

from torch import nn

from qdeq.sources.eager.build import Builder, Rule
from qdeq.sources.eager.classes import (
    activation,
    attention,
    conv,
    conv_transpose,
    dropout,
    embedding,
    functional,
    linear,
    lstm,
    norm,
    reference,
    rnn,
    stubs,
)

__all__ = ["BUILDERS", "NOT_REBUILT", "RULES", "why_not_rebuilt"]

_FAMILIES = (
    *(linear, conv, conv_transpose, norm, activation, dropout, functional, embedding),
    *(rnn, lstm, attention, reference, stubs),
)

RULES: dict[type[nn.Module], Rule] = {source: rule for family in _FAMILIES for source, rule in family.RULES.items()}

BUILDERS: dict[type[nn.Module], Builder] = {source: rule.builder for source, rule in RULES.items()}

_PART = "part of the class that holds it, read with it"
_BASE = "base class"
_FLOAT = "float already: copied as it is"
_PREPARED = "prepared, not converted: call torch.ao.quantization.convert first"

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
        name: dotted name as :func:`qdeq.sources.eager.build.class_name` gives it.
    """
    return NOT_REBUILT.get(name) or NOT_REBUILT.get(name.rpartition(".")[0] + ".*")
