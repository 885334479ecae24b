"""Changes graphs of torch.fx in place."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

__all__ = ["erase_calls", "own_graph"]


def erase_calls(
    module: nn.Module, goes: Callable[[nn.Module], bool], before: Callable[[nn.Module, fx.Node], None] | None = None
) -> None:
    """Drop the calls of modules that pass their input on, and then these modules.

    Args:
        module: a ``GraphModule``; any other is left alone.
        goes: whether a called module goes.
        before: is called with each of them and the node whose output it gets.

    """
    if not isinstance(module, fx.GraphModule):
        return
    targets = set()
    for node in list(module.graph.nodes):
        if node.op == "call_module" and goes(module.get_submodule(str(node.target))):
            targets.add(str(node.target))
            source = node.args[0]
            if before is not None and isinstance(source, fx.Node):
                before(module.get_submodule(str(node.target)), source)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
    for target in targets:
        module.delete_submodule(target)
    module.graph.lint()
    module.recompile()


def own_graph(module: nn.Module) -> fx.Graph | None:
    """The graph that is the forward of a ``GraphModule``, to be read; None for any other module."""
    return module.graph if isinstance(module, fx.GraphModule) else None
