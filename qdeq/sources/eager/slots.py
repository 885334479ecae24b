"""Finds the ``nn.Identity`` that fusing left where an activation used to be.

Fusing Conv + ReLU moves the ReLU into the conv and leaves an Identity in its place. Registration order does not say
which Identity that is, or whether some other code runs it on other values, so the forward of the owner is traced:
the activation moves only where every output of the layer provably runs through that Identity, which runs nowhere
else. Where this cannot be shown the activation stays with its layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from qdeq.tree.call_trace import CallTrace, record_calls, recording
from qdeq.tree.tracing import stand_in, trace_calls

__all__ = ["find_slots"]


def find_slots(
    modules: Mapping[str, nn.Module], fused: Mapping[str, int]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Find the slot of each fused module.

    Args:
        modules: dotted path -> module of the quantized model, shared ones under each of their paths; they are not
            changed, forwards are traced on copies of their owners.
        fused: dotted path of a fused module -> how many Identity places fusing may have left behind it.

    Returns:
        (dotted path of the fused module -> its Identity module, dotted path -> why none was found).

    """
    uses = Counter(map(id, modules.values()))
    slots: dict[str, nn.Module] = {}
    reasons: dict[str, str] = {}
    owners: dict[str, _Calls | str] = {}
    with recording(), torch.random.fork_rng(devices=[]):
        for path, max_slots in fused.items():
            owner_path = _owner(modules, path)
            if owner_path not in owners:
                graph = _trace(modules[owner_path])
                owners[owner_path] = graph if isinstance(graph, str) else _Calls(graph)
            calls = owners[owner_path]
            if isinstance(calls, str):
                reasons[path] = calls
                continue
            chain: list[nn.Module] = []
            for name in calls.followers(path.removeprefix(owner_path + ".") if owner_path else path):
                module = modules[f"{owner_path}.{name}" if owner_path else name]
                if type(module) is not nn.Identity or uses[id(module)] != 1 or len(chain) == max_slots:
                    break
                chain.append(module)
            if chain and uses[id(modules[path])] == 1:
                slots[path] = chain[-1]
            else:
                reasons[path] = "no Identity that runs on its output alone"
    return slots, reasons


def _owner(modules: Mapping[str, nn.Module], path: str) -> str:
    """The nearest ancestor of ``path`` that has a forward of its own."""
    owner = path
    while owner:
        owner = owner.rpartition(".")[0]
        module = modules[owner]
        # ModuleList, ModuleDict and bare namespaces inherit the forward that only raises.
        if type(module).forward is not nn.Module.forward and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            return owner
    return ""


def _trace(owner: nn.Module) -> CallTrace | fx.Graph | str:
    """Which children the forward of ``owner`` runs on whose output; a string says why that cannot be told."""
    if "forward" in owner.__dict__:
        return "its owner has a forward of its own, beside that of its class"
    try:
        return record_calls(stand_in(owner))
    except Exception:  # noqa: BLE001 (the user's forward may raise anything; torch.fx follows more than we do)
        return trace_calls(owner)


class _Calls:
    """Who runs on whose output, in one forward."""

    def __init__(self, graph: CallTrace | fx.Graph) -> None:
        self._calls: dict[str, list[Any]] = {}
        for node in graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(str(node.target), []).append(node)

    def followers(self, name: str) -> Iterator[str]:
        """The children that run one after the other on what ``name`` gave, each once, and nothing else does."""
        calls = self._calls.get(name, ())
        while len(calls) == 1 and len(calls[0].users) == 1:
            (node,) = calls[0].users
            if node.op != "call_module":
                return
            calls = self._calls[str(node.target)]
            if len(calls) != 1:
                return
            yield str(node.target)
