"""What the descriptions of eager modules share: packed weights, biases, the quantization of outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.ao.nn.quantized as nnq
import torch.ao.nn.quantized.dynamic as nnqd
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from qdeq.errors import QdeqValueError, expected
from qdeq.grids.grid import Output
from qdeq.layers.layer import Activation, Later, Layer, Role, Source
from qdeq.report import DroppedSource, Report
from qdeq.tree.walk import every_module
from qdeq.weights.packed import engine_of, open_packed
from qdeq.words import class_name, join

__all__ = [
    "BIAS",
    "Context",
    "Describe",
    "Rule",
    "add_biases",
    "add_output",
    "add_packed",
    "add_pair",
    "begin",
    "drop_inner_qparams",
    "owning",
    "packed_sources",
    "read_linear",
]

BIAS = " (its bias)"
"""What the account adds to the name of a packed weight that holds a bias, too."""


@dataclass(frozen=True)
class Context:
    """What describing may need beside the module.

    Attributes:
        report: handed to builders that users registered; nothing else writes to it here.
        recover_direct_conv: the caller states that no module was copied or loaded after it was converted.
        weights: of a prepared model: "master" or "rounded".
        fold_bn: of a prepared model: fold a batch norm into its layer.

    """

    report: Report
    recover_direct_conv: bool = False
    weights: str = "master"
    fold_bn: bool = True


Describe: TypeAlias = Callable[[Any, str, Context], Layer]


@dataclass(frozen=True)
class Rule:
    """What a quantized class becomes.

    Attributes:
        describe: gives the layer that a module of the class is.
        becomes: the float class, for the table of what is supported.
        note: what a user should know about this class; empty where there is nothing to say.
        activation: what the class applies itself after the layer.

    """

    describe: Describe
    becomes: str
    note: str = ""
    activation: Activation | None = None


def owning(
    describe: Describe,
    kind: type[nn.Module],
    holder: type[nn.Module],
    applies: type[nn.Module] = nn.ReLU,
    *,
    note: str = "",
    places: int = 1,
) -> Rule:
    """The rule of a class that applies an activation after its layer, which is of the float class ``kind``."""
    becomes = f"nn.{kind.__name__} and nn.{applies.__name__}, or {holder.__name__}"
    return Rule(describe, becomes, note, Activation(applies, holder, places))


def begin(kind: Callable[..., nn.Module], module: Any, path: str, *names: str, **args: Any) -> Layer:
    """A layer without parts yet; ``names`` are arguments of ``kind`` that the module has as attributes."""
    return Layer(path, class_name(module), kind, {name: getattr(module, name) for name in names} | args)


def packed_sources(
    packed: Any, path: str, held: str, dtype: torch.dtype = torch.qint8, *, weight: str = "weight", bias: str = "bias"
) -> tuple[Source, Source | None]:
    """The weight and the bias, if it has one, of a packed weight.

    Args:
        packed: the packed weight.
        path: dotted path of its module.
        held: name of the packed weight in the module.
        dtype: that its module declares: qint8 or float16, whose values have no scale: torch unpacks it to float32
            values that are float16 numbers, saturated at 65504.
        weight: name of the weight in reports.
        bias: name of the bias in reports.

    """
    # Most engines unpack the whole weight to give the bias: it is asked for once.
    readable, value = open_packed(packed, where=join(path, bias))
    if dtype == torch.float16:
        readable = Later(lambda: packed.unpack()[0].half())
    at = join(path, held)
    source = None if value is None else Source(join(path, bias), value, at + BIAS)
    return Source(join(path, weight), readable, at), source


def add_packed(layer: Layer, packed: Any, held: str, dtype: torch.dtype = torch.qint8) -> None:
    """Add the weight and the bias of a packed weight."""
    add_pair(layer, *packed_sources(packed, layer.path, held, dtype))


def add_pair(layer: Layer, weight: Source, bias: Source | None) -> None:
    """Add a weight and a bias; the float module has a bias where there is one."""
    layer.args["bias"] = bias is not None
    layer.add("weight", weight)
    if bias is not None:
        layer.add("bias", bias)
        note_zero_bias(layer, bias)


def add_biases(
    layer: Layer, name: str, sources: Sequence[Source | None], *, declared: bool, source_class: str = ""
) -> None:
    """Add biases, one below the other, as the part ``name``, unless the module declares that it has none.

    A bias must be missing in both or in neither. Zeros may be left out: qnnpack stores zeros for a layer that has no
    bias.
    """
    present = [source for source in sources if source is not None]
    remedy = "Convert the model again."
    if not declared:
        for source in present:
            if source.value.any():
                raise QdeqValueError(expected(source.name, "no bias, as its module declares", "a bias", remedy))
            layer.dropped.append(DroppedSource(source.name, "zeros that qnnpack stores for a layer without a bias"))
            layer.read.append(source.held)
        return
    if len(present) != len(sources):
        raise QdeqValueError(expected(join(layer.path, name), "a bias, as its module declares", "none", remedy))
    layer.add(name, *present, source_class=source_class)
    for source in present:
        note_zero_bias(layer, source)


def note_zero_bias(layer: Layer, source: Source) -> None:
    """Say that a bias may be one the layer never had: qnnpack stores zeros where there was none."""
    bias = source.value
    if bias.numel() and not bias[0] and not bias.any():
        name = source.name.removeprefix(f"{layer.path}.") if layer.path else source.name
        layer.notes.append(f"{name} is all zeros, as qnnpack stores a layer without one; it is kept")


def add_output(layer: Layer, module: Any, prefix: str = "", *, packed: Any = None, dynamic: bool = False) -> None:
    """Set the scale and zero point of a module's quantized output aside.

    Args:
        layer: the layer that the module is.
        module: the quantized module.
        prefix: what the names ``scale`` and ``zero_point`` start with in this class.
        packed: its packed weight: a layer of onednn adds the zero point before it rounds.
        dynamic: the module quantizes its input at every call; its output is float, what its class inherits unused.

    """
    if dynamic:
        layer.role = Role.DYNAMIC
        drop_qparams(layer, module, "unused: the output of a dynamic module is float")
        return
    scale, zero_point = float(getattr(module, prefix + "scale")), int(getattr(module, prefix + "zero_point"))
    engine = "" if packed is None else engine_of(packed)
    layer.output = Output(scale, zero_point, zero_point_first=engine == "onednn", engine=engine)
    drop_qparams(layer, module, "quantization of the output", prefix)


def drop_qparams(layer: Layer, module: Any, reason: str, name: str = "") -> None:
    """Name a scale and zero point that have no place in the float model, ``name`` being what stands before them."""
    prefix = name.rpartition(".")[2]
    layer.drop(name + "scale", reason, float(getattr(module, prefix + "scale")))
    layer.drop(name + "zero_point", reason, int(getattr(module, prefix + "zero_point")))


def read_linear(module: Any, path: str) -> tuple[Source, Source | None]:
    """The weight (out_features, in_features) and bias (out_features,) of a Linear, quantized or float, inside a module.

    Raises:
        QdeqValueError: ``module`` is of another class.

    """
    if type(module) in (nnq.Linear, nnqd.Linear):
        packed = module._packed_params
        return packed_sources(packed._packed_params, path, "_packed_params._packed_params", packed.dtype)
    if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear):
        bias = None if module.bias is None else Source(join(path, "bias"), module.bias)
        return Source(join(path, "weight"), module.weight), bias
    raise QdeqValueError(expected(path, "a Linear", class_name(module), "Convert the whole model again."))


def drop_inner_qparams(layer: Layer, module: nn.Module) -> None:
    """Name the scales and zero points inside a module that is rebuilt as one float module."""
    for prefix, part in every_module(module):
        for start in ("", "output_"):
            if hasattr(part, f"{start}scale") and hasattr(part, f"{start}zero_point"):
                drop_qparams(
                    layer, part, "quantization inside a module rebuilt as one", join(prefix, start) if prefix else start
                )
