"""The commands as a user sees them: arguments, options and help. What they do is imported when they run.

Nothing here needs torch, which takes seconds to import: help and wrong arguments answer at once.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["COMMANDS"]

Function = TypeVar("Function", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
# Names of torch's dtypes; `convert` has the dtypes themselves.
_DTYPES = ("float32", "bfloat16", "float16")


def _run(command: str, options: dict[str, Any]) -> Any:
    """Run the function of a command's name in its file."""
    return getattr(importlib.import_module(f"qdeq.cli.{command}"), command)(**options)


def _selection_options(function: Function) -> Function:
    """Add ``--only``, ``--rename``, ``--prefix`` and ``--all``."""
    only = "Take only weights whose names match, such as 'features.*'; may be given more than once."
    rename = (
        "Call a weight, or everything below a dotted name, by another: module= takes the first part away, "
        "encoder=backbone replaces it; may be given more than once."
    )
    function = click.option("--rename", "renames", multiple=True, metavar="OLD=NEW", help=rename)(function)
    return _prefix_options(click.option("--only", multiple=True, metavar="GLOB", help=only)(function))


def _prefix_options(function: Function) -> Function:
    """Add ``--prefix`` and ``--all``."""
    prefix = "Take only what lies below this dotted name, such as model_ema, under the names there."
    everything = "Take what a training checkpoint holds beside weights, too: optimizer state, counters, scores."
    function = click.option("--all", "everything", is_flag=True, help=everything)(function)
    return click.option("--prefix", default="", metavar="NAME", help=prefix)(function)


@click.command(short_help="List every weight of a file.")
@click.argument("file", type=_FILE)
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list with one object for each weight and activation."
)
@click.option("--activations", is_flag=True, help="List the scale and zero point of each quantized activation instead.")
@_prefix_options
def inspect(**options: Any) -> Any:
    """List every weight of FILE: shape, dtype, scheme, scales, size; and what it holds that is no weight.

    \b
    scheme  tensor or channel: one scale for all, or one for each channel
    ends%   share of integers at the two ends of their range: many of them mean
            that values were cut off
    size    bytes of the values in the file
    """  # noqa: D301 (click wants the character itself, not what a raw docstring has)
    return _run("inspect", options)


@click.command(short_help="Write the weights as float, to safetensors.")
@click.argument("src", type=_FILE)
@click.argument("dst", type=_FILE)
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of the weights; float32, and for folders bfloat16.")
@click.option("--shard-size", metavar="SIZE", help="Split into files of at most this size: bytes, or 500MB, 2GB, 2GiB.")
@click.option("--keep", type=click.Choice(["int8"]), help="Keep the integers, with scales and zero points beside them.")
@click.option("--dry-run", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--force", is_flag=True, help="Replace DST if it is there.")
@click.option(
    "--activations",
    type=click.Choice(["drop", "clamp", "fake_quant"]),
    default="drop",
    show_default=True,
    help="Of an ONNX model: values are not rounded, kept in the range of their integers, or rounded as they were.",
)
@_selection_options
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE[:DTYPE]",
    help="TorchScript to ONNX: an input of the model, such as 1x3x224x224 or 1x128:int64; once for each.",
)
def convert(**options: Any) -> Any:
    """Write the weights of SRC as float numbers to DST, a .safetensors file; or a folder, if SRC is one.

    DST appears when it is complete; if anything goes wrong, or you press Ctrl-C, nothing is left behind. SRC is never
    changed. With --shard-size, the shards and their index lie beside DST:

    \b
      qdeq convert model.pth out/model.safetensors --shard-size 2GB
      out/model-00001-of-00003.safetensors ... out/model.safetensors.index.json

    --keep int8 loses nothing and stays small: qdeq reads the quantized weights back from it.

    The folder of a released checkpoint (FP8, NVFP4, int4, ...) becomes a dense one: same shards, config without
    quantization, other files copied. After a stop the same command goes on where it was. Only --dtype, --only and
    --dry-run are for folders.

    An ONNX model becomes a float one if DST ends in .onnx, too, graph and all:

    \b
      qdeq convert model_int8.onnx model.onnx

    An int8 TorchScript file becomes an int8 ONNX model with the same integers; --input says what it takes:

    
      qdeq convert model.pt model.onnx --input 1x3x224x224
    """  # noqa: D301 (click wants the character itself, not what a raw docstring has)
    return _run("convert", options)


@click.command(short_help="Check a converted file against its source, bit for bit.")
@click.argument("src", type=_FILE)
@click.argument("dst", type=_FILE)
@_selection_options
def verify(**options: Any) -> Any:
    """Read SRC again and check every weight of DST against it, bit for bit.

    DST is what qdeq convert made of SRC; for a part of it, or new names, give the --prefix, --only, --rename and --all
    that were given there. Weights in half precision have to be the float32 values rounded to nearest even; weights
    kept as integers have to be the same integers, scales and zero points.

    Exit status: 0 equal, 1 different, 2 an error.
    """
    return _run("verify", options)


@click.command(short_help="Compare the weights of two files.")
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--all", "show_all", is_flag=True, help="List equal tensors, too.")
def diff(**options: Any) -> Any:
    """Compare the weights of two files, quantized or float, in any format.

    Weights of one name are compared as the float32 values that they stand for.

    \b
    equal %    share of values that are equal bit for bit
    max, mean  absolute difference over all values of the weight

    Exit status: 0 equal, 1 different, 2 an error.
    """  # noqa: D301 (click wants the character itself, not what a raw docstring has)
    return _run("diff", options)


@click.command()
@click.argument("int8", type=_FILE)
@click.argument("float_", metavar="FLOAT", type=_FILE)
@click.option("--data", type=_FILE, help="Inputs, with labels or without: .pt, .npz, .safetensors.")
@click.option(
    "--sensitivity",
    type=click.Choice(["apart", "together"]),
    is_flag=False,
    flag_value="apart",
    help="With --data: what each layer's quantization costs, weights and activations apart (default) or together.",
)
@click.option("--html", type=_FILE, help="Write a self-contained HTML report.")
@click.option("--json", "json_", type=_FILE, help="Write the explanation as JSON.")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@click.option("--trust", is_flag=True, help="Read files that hold a whole model. This runs their code.")
def explain(**options: Any) -> Any:
    """Say why the model in INT8 and the one in FLOAT disagree.

    Exit status: 0 they agree, 1 they do not, 2 an error.
    """
    return _run("explain", options)


@click.command(short_help="Show versions, kernels and engines.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(**options: Any) -> Any:
    """Show the versions, kernels and torch engines in use.

    The first row says whether packed weights are read where they lie. Kernels are qdeq's own inner loops for this
    processor, fastest first; engines are torch's, which the live model needs, but qdeq does not.
    """
    return _run("info", options)


COMMANDS = {command.name: command for command in (inspect, convert, verify, diff, explain, info)}
