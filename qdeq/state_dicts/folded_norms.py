"""Batch norms of a float model whose layers come from a state dict in which they are folded away."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from qdeq.errors import refuse
from qdeq.layers.batch_norm import identity_values
from qdeq.report import Report
from qdeq.tree.norms import norms_behind

__all__ = ["FoldedNorm", "fold_norms"]

_PARTS = ("weight", "bias", "running_mean", "running_var")


class FoldedNorm(NamedTuple):
    """What a tensor of a folded batch norm becomes: a constant, or the bias of its layer.

    Attributes:
        target: name of the tensor.
        source: name of the source; empty for a constant.
        how: why, in words.
        value: the constant; None for a source.

    """

    target: str
    source: str
    how: str
    value: float | None = None


def fold_norms(
    where: str,
    model: nn.Module,
    targets: Container[str],
    sources: Mapping[str, str],
    unused: Container[str],
    report: Report,
    *,
    stated: Mapping[str, str] | None,
    strict: bool,
) -> Iterator[FoldedNorm]:
    """Make every batch norm without a source, behind a layer that has one, an exact identity.

    Where the layer has no bias in the model, the folded one becomes the batch norm's.

    Args:
        where: the argument that holds the model, in errors.
        model: the float model.
        targets: names of its tensors.
        sources: those that have a source, with its name.
        unused: names of sources that nothing uses yet.
        report: gets a note of each batch norm.
        stated: layer -> its batch norm, as far as the user states it.
        strict: refuse a batch norm that may belong to several layers; otherwise the report says so.

    Raises:
        QdeqError: what ``stated`` says cannot be, a batch norm may belong to several layers, or has an eps above 1.

    """
    modules = dict(model.named_modules())
    norms = [path for path, module in modules.items() if isinstance(module, _BatchNorm) and module.track_running_stats]
    norms = [path for path in norms if not any(f"{path}.{part}" in sources for part in _PARTS)]
    layers = [path for path in modules if f"{path}.weight" in sources]
    if not norms and not stated:
        return  # nothing is asked of the forward
    behind = norms_behind(model, stated, layers=layers, norms=norms, where=f"{where}: norms")
    if strict:
        behind.refuse_possible(where, norms)
    for norm, possible in behind.possible.items():
        report.note(norm, f"may have been folded into {' or '.join(possible)}: state which by norms=")
    for norm in norms:
        owners = [layer for layer, other in behind.pairs.items() if other == norm and layer in layers]
        if owners:
            how = f"batch norm folded into {' and '.join(owners)}: an exact identity"
            report.note(norm, how)
            yield from _identity(where, modules[norm], norm, how, targets)
            yield from _moved_bias(norm, owners, targets, sources, unused)


def _identity(where: str, module: Any, norm: str, how: str, targets: Container[str]) -> Iterator[FoldedNorm]:
    eps = float(module.eps)
    if eps > 1:
        refuse(f"{where}: {norm}.eps", "an eps below 1", str(eps), "Remove the batch norm: it is folded.")
    variance, weight = identity_values(eps)
    for part, value in zip(_PARTS, (weight, 0.0, 0.0, variance), strict=True):
        if f"{norm}.{part}" in targets:
            yield FoldedNorm(f"{norm}.{part}", "", how, value)


def _moved_bias(
    norm: str, owners: list[str], targets: Container[str], sources: Mapping[str, str], unused: Container[str]
) -> Iterator[FoldedNorm]:
    """The bias of a layer without one in the model; a batch norm that several layers share cannot hold theirs."""
    bias = sources[f"{owners[0]}.weight"].removesuffix("weight") + "bias"
    if len(owners) == 1 and bias in unused and f"{owners[0]}.bias" not in targets and f"{norm}.bias" in targets:
        yield FoldedNorm(f"{norm}.bias", bias, f"the folded bias of {owners[0]}, which has no bias here")
