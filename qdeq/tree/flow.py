"""Where the output of each layer goes, as far as the forwards of a model can be traced."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from qdeq.tree.tracing import Traces
from qdeq.tree.walk import children, every_module, has_forward, is_library_module
from qdeq.words import join

__all__ = ["Flow"]

# What gives the values that it takes, at most in another shape.
_SAME_VALUES = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd)
_SAME_METHODS = frozenset(
    {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "movedim", "squeeze", "unsqueeze"}
    | {"contiguous", "clone", "detach", "float", "double", "half", "to"}
)
_SAME_FUNCTIONS = {getattr(torch, name) for name in _SAME_METHODS if hasattr(torch, name)} | {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
}
_ABOUT = frozenset(
    {"size", "dim", "ndimension", "numel", "stride", "is_contiguous", "shape", "ndim", "dtype", "device"}
)

_Place = tuple[str, fx.Node]  # path of the module whose forward was traced, and a node of that trace


class Flow:
    """What a model's layers hand to which batch norms.

    Attributes:
        modules: dotted path -> module, each once.

    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(every_module(model))
        self._first = {id(module): path for path, module in self.modules.items()}
        self._every = {p: self._first[id(m)] for p, m in every_module(model, remove_duplicate=False)}
        self._graphs = _graphs(model, self.modules)
        # Where a forward could not be traced, it may call anything anywhere.
        self._complete = not any(isinstance(graph, str) for graph in self._graphs.values())
        self._calls: dict[str, list[_Place]] = {}
        for owner, graph in self._graphs.items():
            for node in () if isinstance(graph, str) else graph.nodes:
                path = self._called(owner, node)
                if path is not None:
                    self._calls.setdefault(path, []).append((owner, node))

    def behind(self, layer: str) -> str | None:
        """The norm that all calls of a layer hand their output to, and nobody else; empty for none, None if unknown."""
        found = {self._after(*call) for call in self._calls.get(layer, ())}
        return _agreed(found) if found or not self._complete else ""

    def before(self, norm: str) -> set[str | None]:
        """The layers whose output a norm runs on; "" for anything else, None for what is not known."""
        calls = self._calls.get(norm, ())
        found = {origin for owner, node in calls for origin in self._origins(owner, _input(node))}
        return found if found or self._complete else {None}

    def _called(self, owner: str, node: fx.Node) -> str | None:
        """Path of the module that a node runs."""
        if node.op == "call_module":
            return self._every.get(join(owner, str(node.target)))
        if node.op == "call_function" and node.target is F.batch_norm:
            mean = node.kwargs.get("running_mean", node.args[1] if len(node.args) > 1 else None)
            if isinstance(mean, fx.Node) and mean.op == "get_attr":
                return self._every.get(join(owner, str(mean.target).rpartition(".")[0]))
        return None

    def _after(self, owner: str, node: fx.Node, seen: frozenset[_Place] = frozenset()) -> str | None:
        """Where a value ends up; ``seen`` are the values on the way, for a block that runs on its own output."""
        if (owner, node) in seen:
            return ""
        seen |= {(owner, node)}
        users = [user for user in node.users if not _asks_about(user)]
        if len(users) != 1:
            return ""
        (user,) = users
        if user.op == "output":
            return self._after_owner(owner, seen) if user.args[0] is node else ""
        path = self._called(owner, user)
        graph = None if path is None else self._graphs.get(path)
        if graph is not None and path is not None:
            inside = [] if isinstance(graph, str) else [at for at in _inputs(graph) if _argument(user, at) is node]
            return self._after(path, inside[0], seen) if len(inside) == 1 else None
        if _input(user) is not node:
            return ""
        if path is None or isinstance(self.modules[path], _SAME_VALUES):
            return self._after(owner, user, seen) if path is not None or _keeps(user) else ""
        return path if isinstance(self.modules[path], _BatchNorm) else ""

    def _after_owner(self, owner: str, seen: frozenset[_Place]) -> str | None:
        if not owner:
            return ""
        return _agreed({self._after(*call, seen) for call in self._calls.get(owner, ())})

    def _origins(self, owner: str, node: object, seen: frozenset[_Place] = frozenset()) -> Iterator[str | None]:
        """Where a value comes from, through all calls of the forward that it is in."""
        if not isinstance(node, fx.Node):
            yield ""
            return
        if (owner, node) in seen:
            return
        seen |= {(owner, node)}
        if node.op == "placeholder":
            yield from self._origins_of_input(owner, node, seen)
        elif (path := self._called(owner, node)) is None or isinstance(self.modules[path], _SAME_VALUES):
            if path is not None or _keeps(node):
                yield from self._origins(owner, _input(node), seen)
            else:
                yield ""
        elif path not in self._graphs:
            yield path
        else:
            graph = self._graphs[path]
            yield from [None] if isinstance(graph, str) else self._origins(path, _output(graph), seen)

    def _origins_of_input(self, owner: str, node: fx.Node, seen: frozenset[_Place]) -> Iterator[str | None]:
        calls = self._calls.get(owner, ())
        if not calls:
            yield None if owner else ""
        for at, call in calls:
            yield from self._origins(at, _argument(call, node), seen)


def _graphs(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, fx.Graph | str]:
    """Path of a module -> trace of its forward: of the whole, or else of each that is no layer by itself."""
    traces = Traces(model)
    if traces.whole is not None:
        return {"": traces.whole}
    inner = [
        p for p, m in modules.items() if children(m) and (isinstance(m, nn.Sequential) or not is_library_module(m))
    ]
    return {path: traces.of(modules[path]) for path in inner if has_forward(modules[path])}


def _agreed(found: set[str | None]) -> str | None:
    """What all say; empty where they differ, None where nobody knows or one does not."""
    if None in found or not found:
        return None
    return found.pop() if len(found) == 1 else ""


def _input(node: fx.Node) -> object:
    return node.args[0] if node.args else node.kwargs.get("input")


def _inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _argument(call: fx.Node, placeholder: fx.Node) -> object:
    """What a call of a module passes for one of the inputs of its forward."""
    place = _inputs(placeholder.graph).index(placeholder)
    return call.args[place] if place < len(call.args) else call.kwargs.get(str(placeholder.target))


def _output(graph: fx.Graph) -> object:
    return next(node for node in reversed(graph.nodes) if node.op == "output").args[0]


def _keeps(node: fx.Node) -> bool:
    methods = node.op == "call_method" and node.target in _SAME_METHODS
    return methods or (node.op == "call_function" and node.target in _SAME_FUNCTIONS)


def _asks_about(node: fx.Node) -> bool:
    """Whether a node asks for the shape or the like of its input, not for its values."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _ABOUT
    return (node.op == "call_method" and node.target in _ABOUT) or (node.op == "call_function" and node.target is len)
