"""The list of what is supported: quantized class -> builder. Classes are matched exactly, never by inheritance."""

from __future__ import annotations

from torch import nn

from qdeq.modules import conv, dropout, linear, stubs
from qdeq.modules.build import Builder

__all__ = ["BUILDERS"]

_FAMILIES = (linear, conv, dropout, stubs)

BUILDERS: dict[type[nn.Module], Builder] = {
    source: builder for family in _FAMILIES for source, builder in family.BUILDERS.items()
}
