"""Puts a FakeQuantize behind every operation that torch rounds: as a child of its module, or in a changed forward."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from qdeq.grids.follow import Owner, Sites
from qdeq.grids.modules import FakeQuantize
from qdeq.grids.rules import Site
from qdeq.report import Report
from qdeq.tree.post_process import install
from qdeq.tree.rewriting import rewrite
from qdeq.words import class_name

__all__ = ["place"]


def place(found: Sites, report: Report) -> None:
    """Round every site of a rebuilt model, in place.

    Args:
        found: the sites, from :func:`qdeq.grids.follow.follow`.
        report: gets a note per operation, and what could not be covered.

    """
    for module, sites in found.modules.values():
        if sites and _agree(sites, report):
            install(module, _quantize(sites[0], report))
    for owner in found.owners.values():
        if isinstance(owner, Owner):
            agreed = {node: sites[0] for node, sites in owner.sites.items() if sites and _agree(sites, report)}
            if agreed:
                _rewrite(owner, agreed, report)


def _agree(sites: list[Site], report: Report) -> bool:
    if any((site.grid, site.constant) != (sites[0].grid, sites[0].constant) for site in sites):
        reason = "it runs on values of different scales, and one module holds one scale"
        report.leave_uncovered(sites[0].path, sites[0].operation, reason)
        return False
    return True


def _quantize(site: Site, report: Report) -> FakeQuantize:
    scale, zero_point = site.grid.scale, site.grid.zero_point
    text = f"{site.operation} rounds to scale {scale:g}, zero_point {zero_point}, as torch does on integers"
    report.note(site.path, text)
    return FakeQuantize(site.grid, ties=site.ties)


def _rewrite(owner: Owner, sites: dict[fx.Node, Site], report: Report) -> None:
    lost = [node.target for node in owner.graph.nodes if node.op == "get_attr"]
    missing = [name for name in lost if not _has(owner.module, name)]
    if missing:
        what = f"{class_name(owner.module)}.forward"
        report.leave_uncovered(owner.path, what, f"it makes tensors of its own ({', '.join(missing)})")
        return
    children: dict[str, nn.Module] = {}
    for node, site in sites.items():
        name = f"quantize_{node.name}"
        children[name] = _quantize(site, report)
        if site.constant is not None:
            node.args = tuple(site.constant if isinstance(arg, int | float) else arg for arg in node.args)
        with owner.graph.inserting_after(node):
            rounded = owner.graph.call_module(name, (node,))
        node.replace_all_uses_with(rounded)
        rounded.args = (node,)  # its own use was replaced, too
        children[name].train(owner.module.training)
    rewrite(owner.module, owner.graph, children)
    mode = "training" if owner.module.training else "eval"
    report.note(owner.path, f"forward generated from its trace in {mode} mode, with {', '.join(children)}")


def _has(module: nn.Module, name: str) -> bool:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None
