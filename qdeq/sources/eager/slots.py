"""Finds the ``nn.Identity`` that fusing left where an activation used to be.

Fusing Conv + ReLU moves the ReLU into the conv and leaves an Identity in its place. Registration order does not say
which Identity that is, or whether some other code runs it on other values, so the forward of the owner is traced:
the activation moves only where every output of the layer provably runs through that Identity, which runs nowhere
else. Where this cannot be shown the activation stays with its layer.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import fx, nn

from qdeq.tree.tracing import Traces

__all__ = ["Slots"]


class Slots:
    """The places that fusing left in one model.

    Args:
        modules: dotted path -> module of the quantized model, shared ones under each of their paths; they are not
            changed, forwards are traced on copies of their owners.

    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._uses = Counter(map(id, modules.values()))
        self._traces = Traces()

    def find(self, path: str, most: int) -> nn.Module | str:
        """The last Identity that runs on the output of the module at ``path`` alone; a string says why there is none.

        Args:
            path: dotted path of a fused module.
            most: how many Identity places fusing may have left behind it.

        """
        owner = _owner(self._modules, path)
        graph = self._traces.of(self._modules[owner])
        if isinstance(graph, str):
            return graph
        slot: nn.Module | str = "no Identity that runs on its output alone"
        if self._uses[id(self._modules[path])] != 1:
            return slot
        for name in itertools.islice(_followers(graph, path.removeprefix(owner + ".") if owner else path), most):
            module = self._modules[f"{owner}.{name}" if owner else name]
            if type(module) is not nn.Identity or self._uses[id(module)] != 1:
                break
            slot = module
        return slot


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


def _followers(graph: fx.Graph, name: str) -> Iterator[str]:
    """The children that run one after the other on what ``name`` gave, each once, and nothing else does."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    at = calls.get(name, [])
    while len(at) == 1 and len(at[0].users) == 1:
        (node,) = at[0].users
        at = calls.get(str(node.target), []) if node.op == "call_module" else []
        if len(at) == 1:
            yield str(node.target)
