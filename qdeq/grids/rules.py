"""How torch rounds the operations that it runs on quantized tensors: the grid of an output from that of its input.

Sources: aten/src/ATen/native/quantized/cpu, one file per operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from qdeq.grids.grid import Grid
from qdeq.report import Report

__all__ = [
    "COPIES",
    "VALUE_BY_VALUE",
    "Call",
    "Site",
    "Unknown",
    "grids_in",
    "method",
    "operate",
    "operation_key",
    "report_unknown",
    "site_of",
]

# Operations by name, lower case without underscores, so that F.avg_pool2d and nn.AvgPool2d need one entry.
KEEPS_VALUES = {
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
    *("maximum", "minimum", "sort", "topk", "flip", "roll", "tolist", "unfold", "repeatinterleave", "tile"),
}
# Averages of integers, and which number is even after a tie. fbgemm's 2-d and 3-d average pooling knows both; what
# comes from a convolution is channels_last, and then it is the value. A mean over inner dimensions alone is integer
# arithmetic, any other a float mean in the order of memory.
_TIES = {
    **dict.fromkeys(("avgpool2d", "avgpool3d"), "value"),
    **dict.fromkeys(("avgpool1d", "adaptiveavgpool1d", "adaptiveavgpool2d", "adaptiveavgpool3d"), "integer"),
    **dict.fromkeys(("interpolate", "upsample", "upsamplingbilinear2d", "upsamplebilinear2d"), "integer"),
}
_KEEPS_GRID = {
    *_TIES,
    *(
        "mean",
        "upsamplingnearest2d",
        "upsamplenearest2d",
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
# Of those that keep the grid: what only moves values, or puts a zero beside them,
COPIES = {"upsamplingnearest2d", "upsamplenearest2d", "stack", "pad", "zeropad2d", "reflectionpad2d"}
# and, whatever the grid, what gives each output from one value.
VALUE_BY_VALUE = {
    *("hardtanh", "relu6", "clamp", "clip", "clampmin", "clampmax", "threshold", "leakyrelu", "gelu"),
    *("sigmoid", "hardsigmoid", "tanh"),
}
# Scale and zero point for 0..255; for -128..127 the zero point is 128 less.
_OWN_GRID = {"sigmoid": (1 / 256, 0), "hardsigmoid": (1 / 256, 0), "tanh": (2 / 256, 128)}
LEAVES_GRID = {
    *("dequantize", "size", "dim", "numel", "ndimension", "shape", "getattr", "isfloatingpoint", "len", "eq", "ne"),
    *("gt", "lt", "ge", "le", "argmax", "argmin", "type", "device"),
}


@dataclass(frozen=True)
class Site:
    """An output that the int8 model rounds.

    Attributes:
        path: dotted path of the module whose forward runs the operation.
        operation: its name.
        grid: of its output.
        ties: of the rounding (:class:`qdeq.grids.modules.FakeQuantize`).
        constant: that the int8 model uses instead of the one in the code.
        given: grids of its quantized inputs.
        replay: runs it on as many tensors, quantized or float.
        relu: a ReLU stands between it and the rounding.

    """

    path: str
    operation: str
    grid: Grid
    ties: str = ""
    constant: float | None = None
    given: tuple[Grid, ...] = ()
    replay: Callable[..., Any] | None = None
    relu: bool = False


@dataclass(eq=False)
class Unknown:
    """A quantized value whose grid is not known, and the operation that made it so."""

    path: str
    operation: str
    reported: bool = False


def grids_in(value: Any) -> Iterator[Grid | Unknown]:
    """The grids of the quantized values in an argument, or in arguments."""
    if isinstance(value, Grid | Unknown):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from grids_in(item)
    elif isinstance(value, dict):
        yield from grids_in(list(value.values()))


def report_unknown(values: Any, report: Report) -> None:
    """Name the operations whose quantized output someone uses without its grid being known."""
    for value in grids_in(values):
        if isinstance(value, Unknown) and not value.reported:
            value.reported = True
            reason = "how torch rounds it on quantized tensors is not known here"
            report.leave_uncovered(value.path, value.operation, reason)


@dataclass(frozen=True, eq=False)
class Call:
    """One operation and its arguments, grids where quantized values are.

    Attributes:
        path: dotted path of the module whose forward runs it.
        name: of the function, method or module class.
        run: runs it.
        args: its arguments.
        kwargs: those given by name.

    """

    path: str
    name: str
    run: Callable[..., Any]
    args: Any
    kwargs: Any

    def noted(self, site: Site) -> Site:
        """The site with what is needed to run its operation alone."""
        given = tuple(grid for grid in grids_in((self.args, self.kwargs)) if isinstance(grid, Grid))
        return replace(site, given=given, replay=self._replay)

    def _replay(self, *values: Any) -> Any:
        following = iter(values)
        args, kwargs = (_filled(given, following) for given in (self.args, self.kwargs))
        return self.run(*args, **kwargs)


def method(name: str) -> Callable[..., Any]:
    """What runs a method of that name of its first argument."""
    return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)


def _filled(given: Any, values: Iterator[Any]) -> Any:
    """``given`` with the next value in place of each grid."""
    if isinstance(given, Grid):
        return next(values)
    if isinstance(given, list | tuple):
        return [_filled(item, values) for item in given]
    if isinstance(given, dict):
        return {name: _filled(item, values) for name, item in given.items()}
    return given


def operate(path: str, name: str, args: Any, kwargs: Any, report: Report) -> Grid | Unknown | Site | None:
    """What becomes of the grids of its inputs in one operation.

    Args:
        path: dotted path of the module whose forward runs it.
        name: name of the function, method or module class.
        args: its arguments; a grid where a quantized tensor is.
        kwargs: those given by name.
        report: gets the operations whose output is used here without its grid being known.

    Returns:
        The grid of the output; a :class:`Site` where the operation rounds to one, and None for a float output.

    """
    key = operation_key(name)
    first = next(grids_in((args, kwargs)), None)
    if first is None or key in LEAVES_GRID:
        return None
    if key == "getitem" and isinstance(args[0], list | tuple):
        taken: Grid | Unknown | None = args[0][args[1]]
        return taken
    if key in KEEPS_VALUES:
        return first
    report_unknown((args, kwargs), report)
    if isinstance(first, Unknown):
        return first
    return site_of(path, name, first, args) or Unknown(path, name)


def operation_key(name: str) -> str:
    """The name under which the tables list an operation: ``avgpool2d`` for ``avg_pool2d`` and ``AvgPool2d``."""
    return name.replace("_", "").lower()


def site_of(path: str, name: str, given: Grid, args: Any) -> Site | None:
    """How torch rounds one operation.

    Args:
        path: dotted path of the module whose forward runs it.
        name: name of the function, method or module class.
        given: grid of its first quantized input.
        args: its arguments; a grid where a quantized tensor is.

    Returns:
        The output's grid, or None where it is not known.

    """
    key = operation_key(name)
    low, high = given.quant_min, given.quant_max
    if key in _KEEPS_GRID:
        return Site(path, name, given, "integer" if key == "mean" and args[1:2] == (-1,) else _TIES.get(key, ""))
    if key in _OWN_GRID:
        scale, zero_point = _OWN_GRID[key]
        return Site(path, name, Grid(scale, zero_point + low, low, high))
    number = next((value for value in args if isinstance(value, int | float)), None)
    if key in ("add", "mul") and number is not None:
        return _add_scalar(path, name, given, number) if key == "add" else _mul_scalar(path, name, given, number)
    return None


def _add_scalar(path: str, name: str, given: Grid, number: float) -> Site:
    """ATen qadd.cpp, ``_add_scalar_out``: the constant goes to the grid, and the range widens to take the shift."""
    steps = round(number / given.scale)
    shifted = given.zero_point - steps
    span = given.quant_max - given.quant_min
    if given.quant_min > shifted:
        grid = Grid((given.quant_max - shifted) / span * given.scale, given.quant_min)
    elif given.quant_max < shifted:
        grid = Grid((shifted - given.quant_min) / span * given.scale, given.quant_max)
    else:
        grid = Grid(given.scale, shifted)
    bounded = Grid(grid.scale, grid.zero_point, given.quant_min, given.quant_max)
    return Site(path, name, bounded, constant=steps * given.scale)


def _mul_scalar(path: str, name: str, given: Grid, number: float) -> Site:
    """ATen qmul.cpp, ``_mul_scalar_out``: the scale takes the constant's size, the zero point its sign."""
    low, high = given.quant_min, given.quant_max
    if number > 0:
        grid = Grid(given.scale * number, given.zero_point, low, high)
    elif number < 0:
        grid = Grid(given.scale * -number, high - (given.zero_point - low), low, high)
    else:
        grid = Grid(0.1, 0, low, high)
    return Site(path, name, grid)
