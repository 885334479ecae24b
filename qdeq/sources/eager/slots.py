"""Finds the ``nn.Identity`` that fusing left where an activation used to be.

Fusing Conv + ReLU moves the ReLU into the conv and leaves an Identity in its place. Registration order does not say
which Identity that is, or whether some other code runs it on other values, so the forward of the owner is traced:
the activation moves only where every output of the layer provably runs through that Identity, which runs nowhere
else. Where this cannot be shown the activation stays with its layer.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import fx, nn

from qdeq.tree.tracing import Traces
from qdeq.tree.walk import owner_of
from qdeq.words import join

__all__ = ["Slots"]


_NONE = "no Identity that runs on its output alone"


class Slots:
    """The places that fusing left in one model.

    Args:
        modules: dotted path -> module of the quantized model, shared ones under each of their paths; they are not
            changed, forwards are traced on copies of their owners.

    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._uses = Counter(map(id, modules.values()))
        self._traces = Traces(modules[""])

    @functools.cached_property
    def _whole(self) -> Mapping[str, list[fx.Node]]:
        return {} if self._traces.whole is None else _calls(self._traces.whole)

    def find(self, path: str, most: int) -> nn.Module | str:
        """The last Identity that runs on the output of the module at ``path`` alone; a string says why there is none.

        Args:
            path: dotted path of a fused module.
            most: how many Identity places fusing may have left behind it.

        """
        if self._uses[id(self._modules[path])] != 1:
            return _NONE
        if len(self._whole.get(path, ())) == 1:
            return self._last(self._whole, "", path, most)
        # The whole cannot be traced, or runs it several times: then the forward around it alone tells.
        owner = owner_of(self._modules, path)
        graph = self._traces.of(self._modules[owner])
        return graph if isinstance(graph, str) else self._last(_calls(graph), owner, path, most)

    def _last(self, calls: Mapping[str, list[fx.Node]], owner: str, path: str, most: int) -> nn.Module | str:
        slot: nn.Module | str = _NONE
        for name in itertools.islice(_followers(calls, path.removeprefix(owner + ".") if owner else path), most):
            module = self._modules[join(owner, name)]
            if type(module) is not nn.Identity or self._uses[id(module)] != 1:
                break
            slot = module
        return slot


def _calls(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    """Each child's calls in a graph."""
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    return calls


def _followers(calls: Mapping[str, list[fx.Node]], name: str) -> Iterator[str]:
    """The children that one forward runs after the other on what ``name`` gave, each once, and nothing else does."""
    at = calls.get(name, [])
    forward = _running(at[0]) if at else ()
    while len(at) == 1 and len(at[0].users) == 1:
        (node,) = at[0].users
        at = calls.get(str(node.target), []) if node.op == "call_module" else []
        if len(at) == 1:
            if _running(at[0]) != forward:
                return  # what a block hands to another may pass hooks of theirs
            yield str(node.target)


def _running(node: fx.Node) -> tuple[str, ...]:
    """The modules whose forwards run, one inside the other, when a child is called."""
    return tuple(node.meta.get("nn_module_stack", {}))[:-1]
