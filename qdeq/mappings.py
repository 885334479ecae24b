"""The list of what is supported: quantized class -> builder. Classes are matched exactly, never by inheritance."""

from __future__ import annotations

from torch import nn

from qdeq.modules import (
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
from qdeq.modules.build import Builder, Rule

__all__ = ["BUILDERS", "RULES"]

_FAMILIES = (
    *(linear, conv, conv_transpose, norm, activation, dropout, functional, embedding),
    *(rnn, lstm, attention, reference, stubs),
)

RULES: dict[type[nn.Module], Rule] = {source: rule for family in _FAMILIES for source, rule in family.RULES.items()}

BUILDERS: dict[type[nn.Module], Builder] = {source: rule.builder for source, rule in RULES.items()}
