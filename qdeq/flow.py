"""Follows scales and zero points through the forwards of a rebuilt model, from operation to operation.

The int8 model's float-looking code (``F.avg_pool2d(x, 2)``, ``x.mean([2, 3])``, an ``nn.AvgPool2d``) works on quantized
tensors: torch computes it on integers and rounds the result to the grid of its input, or to one that the operation
prescribes. Which grid that is depends on what ran before. So each forward is traced with torch.fx, its children as
single calls, and the grids are followed through all forwards from the model's input on. Where an operation rounds, a
FakeQuantize is put behind it. What cannot be followed is named in ``report.uncovered``.

Sources of the rules: aten/src/ATen/native/quantized/cpu, one file per operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from qdeq.modules.build import class_name, join
from qdeq.postprocess import CHILD, FakeQuantize, Qparams, install
from qdeq.report import Report
from qdeq.rewrite import rewrite
from qdeq.slots import trace_calls

__all__ = ["imitate_functions"]

# Operations by name, lower case without underscores, so that F.avg_pool2d and nn.AvgPool2d need one entry.
_KEEPS_VALUES = {
    *("relu", "maxpool1d", "maxpool2d", "maxpool3d", "adaptivemaxpool1d", "adaptivemaxpool2d", "adaptivemaxpool3d"),
    *("identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout"),
    *(
        "flatten",
        "unflatten",
        "reshape",
        "view",
        "viewas",
        "permute",
        "transpose",
        "t",
        "contiguous",
        "clone",
        "detach",
    ),
    *("squeeze", "unsqueeze", "expand", "expandas", "repeat", "getitem", "narrow", "select", "indexselect", "chunk"),
    *("split", "unbind", "movedim", "channelshuffle", "pixelshuffle", "pixelunshuffle", "max", "min", "amax", "amin"),
    *("maximum", "minimum", "sort", "topk", "flip", "roll", "tolist", "unfold"),
}
# Averages of integers, and which number is even after a tie. fbgemm's 2-d and 3-d average pooling knows both; what
# comes from a convolution is channels_last, and then it is the value. A mean over inner dimensions alone is integer
# arithmetic, any other a float mean in the order of memory.
_TIES = {
    **dict.fromkeys(("avgpool2d", "avgpool3d"), "value"),
    **dict.fromkeys(("avgpool1d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d"), "integer"),
    **dict.fromkeys(("interpolate", "upsample", "upsamplingbilinear2d"), "integer"),
}
_KEEPS_GRID = {
    *_TIES,
    *(
        "mean",
        "upsamplingnearest2d",
        "hardtanh",
        "relu6",
        "clamp",
        "clip",
        "clampmin",
        "clampmax",
        "threshold",
        "leakyrelu",
        "gelu",
        "cat",
        "concat",
    ),
    *("stack", "pad", "zeropad2d", "constantpad1d", "constantpad2d", "constantpad3d", "reflectionpad2d"),
}
# Scale and zero point for 0..255; for -128..127 the zero point is 128 less.
_OWN_GRID = {"sigmoid": (1 / 256, 0), "hardsigmoid": (1 / 256, 0), "tanh": (2 / 256, 128)}
_LEAVES_GRID = {
    *("dequantize", "size", "dim", "numel", "ndimension", "shape", "getattr", "isfloatingpoint", "len", "eq", "ne"),
    *("gt", "lt", "ge", "le", "argmax", "argmin", "type", "device"),
}


@dataclass(eq=False)
class _Unknown:
    """A quantized value whose grid is not known, and the operation that made it so."""

    path: str
    operation: str
    reported: bool = False


@dataclass(frozen=True)
class _Site:
    """An output that the int8 model rounds: the grid, and the constant it uses instead of the one in the code."""

    path: str
    operation: str
    qparams: Qparams
    ties: str = ""
    constant: float | None = None


@dataclass
class _Owner:
    path: str
    module: nn.Module
    graph: fx.Graph
    sites: dict[fx.Node, list[_Site]] = field(default_factory=dict)


def imitate_functions(model: nn.Module, dequantized: set[int], inner: set[int], report: Report) -> None:
    """Put a FakeQuantize behind every operation that torch rounds when it runs on quantized tensors.

    Args:
        model: rebuilt model whose converted outputs have their FakeQuantize; it is changed in place.
        dequantized: ids of the modules that stand where the int8 model dequantizes.
        inner: ids of converted layers whose output is rounded by the module that took their activation.
        report: gets a note per operation, and what could not be covered.

    """
    flow = _Flow(model, dequantized, inner, report)
    flow.report_unknown(flow.call("", model, (), {}))
    flow.place()


class _Flow:
    def __init__(self, model: nn.Module, dequantized: set[int], inner: set[int], report: Report) -> None:
        self.model = model
        self.dequantized = dequantized
        self.inner = inner
        self.report = report
        self.owners: dict[int, _Owner | str] = {}
        self.module_sites: dict[int, tuple[nn.Module, list[_Site]]] = {}

    def call(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The grids of what ``module`` returns, for inputs with the grids ``args``: None means not quantized."""
        quantizer = _quantizer(module)
        if quantizer is not None:
            if not _only_rounds(module):
                self.report_unknown((args, kwargs))
            return _qparams(quantizer)
        if id(module) in self.dequantized:
            return None
        if id(module) in self.inner:
            self.report_unknown((args, kwargs))
            return _Unknown(path, type(module).__name__, reported=True)
        if type(module).__module__.startswith(("torch.nn.", "torch.ao.", "qdeq.")) and not isinstance(
            module, nn.Sequential
        ):
            sites = self.module_sites.setdefault(id(module), (module, []))[1]
            return self._operate(path, type(module).__name__, args, kwargs, sites, absorbed=False)
        owner = self._owner(path, module)
        if isinstance(owner, str):
            self._report_untraced(path, module, args, kwargs, owner)
            return None
        return self._run(owner, path, args, kwargs)

    def _owner(self, path: str, module: nn.Module) -> _Owner | str:
        if id(module) not in self.owners:
            graph = trace_calls(module)
            self.owners[id(module)] = graph if isinstance(graph, str) else _Owner(path, module, graph)
        return self.owners[id(module)]

    def _run(self, owner: _Owner, path: str, args: Any, kwargs: Any) -> Any:
        values: dict[fx.Node, Any] = {}
        inputs = iter(args)
        for node in owner.graph.nodes:
            given = fx.map_arg(node.args, values.__getitem__)
            given_by_name = fx.map_arg(node.kwargs, values.__getitem__)
            if node.op == "placeholder":
                values[node] = kwargs[node.name] if node.name in kwargs else next(inputs, None)
            elif node.op == "get_attr":
                values[node] = None
            elif node.op == "call_module":
                child = owner.module.get_submodule(node.target)
                values[node] = self.call(join(path, node.target), child, given, given_by_name)
            elif node.op == "output":
                return given[0]
            else:
                name = node.target if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))
                absorbed = _feeds_quantizer(node, owner.module)
                sites = owner.sites.setdefault(node, [])
                values[node] = self._operate(path, name, given, given_by_name, sites, absorbed=absorbed)
        return None

    def _operate(self, path: str, name: str, args: Any, kwargs: Any, sites: list[_Site], *, absorbed: bool) -> Any:
        """The grid of one operation's output; where it rounds, the site is noted in ``sites``."""
        key = name.replace("_", "").lower()
        first = next(_grids((args, kwargs)), None)
        if first is None or key in _LEAVES_GRID:
            return None
        if key == "getitem" and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if key in _KEEPS_VALUES:
            return first
        self.report_unknown((args, kwargs))
        if isinstance(first, _Unknown):
            return first
        if absorbed:
            return _Unknown(path, name, reported=True)
        site = self._site(path, name, key, first, args)
        if site is None:
            return _Unknown(path, name)
        sites.append(site)
        return site.qparams

    def _site(self, path: str, name: str, key: str, given: Qparams, args: Any) -> _Site | None:
        low, high = given.quant_min, given.quant_max
        if key in _KEEPS_GRID:
            return _Site(path, name, given, "integer" if key == "mean" and args[1:2] == (-1,) else _TIES.get(key, ""))
        if key in _OWN_GRID:
            scale, zero_point = _OWN_GRID[key]
            return _Site(path, name, Qparams(scale, zero_point + low, low, high))
        number = next((value for value in args if isinstance(value, int | float)), None)
        if key in ("add", "mul") and number is not None:
            return _add_scalar(path, name, given, number) if key == "add" else _mul_scalar(path, name, given, number)
        return None

    def report_unknown(self, values: Any) -> None:
        """Name the operations whose quantized output someone uses without its grid being known."""
        for value in _grids(values):
            if isinstance(value, _Unknown) and not value.reported:
                value.reported = True
                reason = "how torch rounds it on quantized tensors is not known here"
                self.report.leave_uncovered(value.path, value.operation, reason)

    def _report_untraced(self, path: str, module: nn.Module, args: Any, kwargs: Any, reason: str) -> None:
        if any(True for _ in _grids((args, kwargs))) or any(_quantizer(child) for child in module.modules()):
            what = f"{class_name(module)}.forward"
            self.report.leave_uncovered(path, what, f"only its converted modules are imitated: {reason}")

    def place(self) -> None:
        """Put the FakeQuantize modules in: children of modules, or calls in a rewritten forward."""
        for module, sites in self.module_sites.values():
            if sites and self._agree(sites):
                install(module, self._quantize(sites[0]))
        for owner in self.owners.values():
            if isinstance(owner, _Owner):
                agreed = {node: sites[0] for node, sites in owner.sites.items() if sites and self._agree(sites)}
                if agreed:
                    self._rewrite(owner, agreed)

    def _agree(self, sites: list[_Site]) -> bool:
        if any((site.qparams, site.constant) != (sites[0].qparams, sites[0].constant) for site in sites):
            reason = "it runs on values of different scales, and one module holds one scale"
            self.report.leave_uncovered(sites[0].path, sites[0].operation, reason)
            return False
        return True

    def _quantize(self, site: _Site) -> FakeQuantize:
        scale, zero_point = site.qparams.scale, site.qparams.zero_point
        text = f"{site.operation} rounds to scale {scale:g}, zero_point {zero_point}, as torch does on integers"
        self.report.note(site.path, text)
        return FakeQuantize(site.qparams, ties=site.ties)

    def _rewrite(self, owner: _Owner, sites: dict[fx.Node, _Site]) -> None:
        lost = [node.target for node in owner.graph.nodes if node.op == "get_attr"]
        missing = [name for name in lost if not _has(owner.module, name)]
        if missing:
            what = f"{class_name(owner.module)}.forward"
            self.report.leave_uncovered(owner.path, what, f"it makes tensors of its own ({', '.join(missing)})")
            return
        children: dict[str, nn.Module] = {}
        for node, site in sites.items():
            name = f"quantize_{node.name}"
            children[name] = self._quantize(site)
            if site.constant is not None:
                node.args = tuple(site.constant if isinstance(arg, int | float) else arg for arg in node.args)
            with owner.graph.inserting_after(node):
                rounded = owner.graph.call_module(name, (node,))
            node.replace_all_uses_with(rounded)
            rounded.args = (node,)  # its own use was replaced, too
            children[name].train(owner.module.training)
        rewrite(owner.module, owner.graph, children)
        mode = "training" if owner.module.training else "eval"
        self.report.note(owner.path, f"forward generated from its trace in {mode} mode, with {', '.join(children)}")


def _quantizer(module: nn.Module) -> FakeQuantize | None:
    if isinstance(module, FakeQuantize):
        return module
    child = module._modules.get(CHILD)
    return child if isinstance(child, FakeQuantize) else None


def _qparams(quantizer: FakeQuantize) -> Qparams:
    bounds = quantizer.quant_min, quantizer.quant_max
    return Qparams(float(quantizer.scale), int(quantizer.zero_point), *bounds)


def _only_rounds(module: nn.Module) -> bool:
    return isinstance(module, FakeQuantize) or type(module) is nn.Identity


def _feeds_quantizer(node: fx.Node, owner: nn.Module) -> bool:
    """Whether everything that uses ``node`` rounds it at once, possibly after a ReLU, as FloatFunctional's ops do."""
    if not node.users:
        return False
    for user in node.users:
        if user.op == "call_module":
            module = owner.get_submodule(str(user.target))
            if not (_only_rounds(module) and _quantizer(module)):
                return False
        elif getattr(user.target, "__name__", "") != "relu" or not _feeds_quantizer(user, owner):
            return False
    return True


def _grids(value: Any) -> Iterator[Qparams | _Unknown]:
    if isinstance(value, Qparams | _Unknown):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _grids(item)
    elif isinstance(value, dict):
        yield from _grids(list(value.values()))


def _add_scalar(path: str, name: str, given: Qparams, number: float) -> _Site:
    """ATen qadd.cpp, ``_add_scalar_out``: the constant goes to the grid, and the range widens to take the shift."""
    steps = round(number / given.scale)
    shifted = given.zero_point - steps
    span = given.quant_max - given.quant_min
    if given.quant_min > shifted:
        grid = Qparams((given.quant_max - shifted) / span * given.scale, given.quant_min)
    elif given.quant_max < shifted:
        grid = Qparams((shifted - given.quant_min) / span * given.scale, given.quant_max)
    else:
        grid = Qparams(given.scale, shifted)
    bounded = Qparams(grid.scale, grid.zero_point, given.quant_min, given.quant_max)
    return _Site(path, name, bounded, constant=steps * given.scale)


def _mul_scalar(path: str, name: str, given: Qparams, number: float) -> _Site:
    """ATen qmul.cpp, ``_mul_scalar_out``: the scale takes the constant's size, the zero point its sign."""
    low, high = given.quant_min, given.quant_max
    if number > 0:
        grid = Qparams(given.scale * number, given.zero_point, low, high)
    elif number < 0:
        grid = Qparams(given.scale * -number, high - (given.zero_point - low), low, high)
    else:
        grid = Qparams(0.1, 0, low, high)
    return _Site(path, name, grid)


def _has(module: nn.Module, name: str) -> bool:
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value is not None
