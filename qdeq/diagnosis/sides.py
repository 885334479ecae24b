"""Reads either side of a diagnosis: a model, a state_dict or a checkpoint file, down to the weights of each layer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.archive import open as open_archive
from qdeq.dequant import unpack_source
from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.forms import is_quantized_module, quantized_sources
from qdeq.modules.build import class_name, join
from qdeq.packed import packed_bias
from qdeq.weight import QuantizedWeight

__all__ = ["FloatLayer", "IntegerLayer", "Integers", "Side", "float_layers", "integer_layers", "open_side"]


@dataclass(frozen=True, eq=False)
class Integers:
    """A quantized weight with the channel axis first.

    Attributes:
        values: int8, uint8 or int32, (channels, weights per channel).
        scale: float64, (channels,).
        zero_point: float64, (channels,); whole numbers unless the qparams are float.
        shape: shape of the weight as its layer holds it.
        axis: where the channel axis is in ``shape``.
        qscheme: torch's name of the scheme; per tensor, all scales are equal.
        full_range: smallest and largest value of the dtype.

    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor
    shape: tuple[int, ...]
    axis: int
    qscheme: str
    full_range: tuple[int, int]

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Integers:
        """Bring a quantized weight into this form; contiguous integers with the channel axis first are not copied."""
        axis = weight.axis or 0
        values = weight.values().movedim(axis, 0)
        channels = values.shape[0]
        scale, zero_point = weight.scale.expand(channels), weight.zero_point.double().expand(channels)
        kind = weight.integers
        return cls(
            values.reshape(channels, -1), scale, zero_point, weight.shape, axis, weight.qscheme, (kind.low, kind.high)
        )

    @property
    def per_channel(self) -> bool:
        """Whether each channel has a scale of its own."""
        return self.qscheme != "per_tensor_affine"

    def rows(self, index: slice | Tensor) -> Tensor:
        """Return the float32 weights of some channels, as ``dequantize()`` gives them."""
        values = self.values[index].contiguous()
        scale, zero_point = self.scale[index], self.zero_point[index]
        if not self.per_channel:
            scale, zero_point = self.scale[0], self.zero_point[0]
        part = QuantizedWeight(
            int_repr=values,
            scale=scale.clone(),
            zero_point=zero_point.float() if self.qscheme.endswith("float_qparams") else zero_point.long(),
            axis=0 if self.per_channel else None,
            qscheme=self.qscheme,
            dtype={torch.int8: "qint8", torch.uint8: "quint8", torch.int32: "qint32"}[values.dtype],
            shape=tuple(values.shape),
        )
        return part.dequantize(allow_bad_scales=True)

    def reference(self) -> Tensor:
        """Return the whole float32 weight in the layer's own shape."""
        moved = [self.shape[self.axis], *(size for i, size in enumerate(self.shape) if i != self.axis)]
        return self.rows(slice(None)).reshape(moved).movedim(0, self.axis)

    def as_rows(self, weight: Tensor) -> Tensor:
        """Return a float weight of the layer's shape as (channels, weights per channel), channel axis first."""
        return weight.movedim(self.axis, 0).reshape(self.values.shape)


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A layer of the int8 side.

    Attributes:
        path: dotted path.
        class_name: class of its module; empty where the side is a state_dict.
        ints: its integers, one byte per weight of an 8-bit layer.
        bias: float32 (channels,), or None.
        activation: class name of the activation that the module applies itself; empty if none.
        output: scale and zero point of the module's output; None where it is not known.

    """

    path: str
    class_name: str
    ints: Integers
    bias: Tensor | None
    activation: str = ""
    output: tuple[float, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.ints.shape

    @property
    def numel(self) -> int:
        """Number of weights."""
        return int(torch.Size(self.shape).numel())


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """A layer of the float side: its weight and bias as it applies them (batch norm inside the module folded in)."""

    path: str
    class_name: str
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True, eq=False)
class Side:
    """One side of a diagnosis: ``model`` is None where only a state_dict is known."""

    model: nn.Module | None
    state: Mapping[str, Any] | None = None


def open_side(source: object, where: str, *, trust: bool = False) -> Side:
    """Take a model, a state_dict or the path of a checkpoint.

    Args:
        source: ``nn.Module``, mapping of names to tensors, or path.
        where: name of the argument in errors.
        trust: also read files that hold a whole pickled model or TorchScript, which runs their code.

    Raises:
        QdeqTypeError: something else.
        QdeqValueError: a file that cannot be read.

    """
    if isinstance(source, str | Path):
        source = _load(Path(source), where, trust)
    if isinstance(source, nn.Module):
        return Side(source)
    if isinstance(source, Mapping):
        inner = source.get("state_dict", source)
        return Side(None, inner if isinstance(inner, Mapping) else source)
    remedy = "Pass a torch.nn.Module, a state_dict or the path of a checkpoint."
    raise QdeqTypeError(expected(where, "a model, a state_dict or a path", class_name(source), remedy))


def _load(path: Path, where: str, trust: bool) -> object:
    """Read a checkpoint: by :func:`qdeq.open`, which runs no code of the file, or with trust the model in it."""
    if not path.is_file():
        raise QdeqValueError(expected(where, "an existing file", str(path), "Check the path."))
    if not trust or path.suffix == ".safetensors":
        return open_archive(path)
    with warnings.catch_warnings():
        # torch warns about its own TypedStorage whenever it reads a quantized tensor.
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")
        try:
            return torch.load(path, weights_only=False, map_location="cpu")
        except Exception as error:
            got = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            remedy = "Pass a file that torch.save wrote."
            raise QdeqValueError(expected(str(path), "a checkpoint that torch.load reads", got, remedy)) from error


_FUSED_ACTIVATIONS = {
    "ConvReLU": "ReLU",
    "LinearReLU": "ReLU",
    "LinearLeakyReLU": "LeakyReLU",
    "LinearTanh": "Tanh",
    "ConvAddReLU": "ReLU",
}


def fused_activation(module: nn.Module) -> str:
    """Class name of the activation that a fused (quantized, QAT or held) layer applies itself."""
    for cls in type(module).__mro__:
        name = cls.__name__.rstrip("123d")
        if name in ("ConvBnReLU", "BNReLU"):
            return "ReLU"
        if name in _FUSED_ACTIVATIONS:
            return _FUSED_ACTIVATIONS[name]
    return ""


def integer_layers(side: Side) -> list[IntegerLayer]:
    """Return the layers with a quantized weight, in the order of the side."""
    return _layers_of_state(side.state) if side.model is None else _layers_of_model(side.model)


def _layers_of_model(model: nn.Module) -> list[IntegerLayer]:
    layers = []
    for path, module in model.named_modules():
        if not is_quantized_module(module) or not callable(getattr(module, "weight", None)):
            continue
        sources = [value for part in module.modules() for _, value in quantized_sources(part)]
        if len(sources) != 1:
            continue
        bias = packed_bias(sources[0]) if isinstance(sources[0], torch.ScriptObject) else None
        scale, zero_point = getattr(module, "scale", None), getattr(module, "zero_point", None)
        layers.append(
            IntegerLayer(
                path=path,
                class_name=class_name(module),
                ints=_read(sources[0], path, module),
                bias=bias,
                activation=fused_activation(module),
                output=None if scale is None or zero_point is None else (float(scale), int(zero_point)),
            )
        )
    return layers


def _read(source: object, path: str, module: nn.Module | None = None) -> Integers:
    weight = unpack_source(source, where=join(path, "weight"))
    # A packed Conv1d is stored as a Conv2d of height 1.
    if module is not None and "1d" in type(module).__name__ and len(weight.shape) == 4:
        weight = replace(weight, int_repr=weight.int_repr.squeeze(2), shape=(*weight.shape[:2], weight.shape[3]))
    return Integers.of(weight)


_WEIGHT_SUFFIXES = (
    "._packed_params._packed_params",
    "._packed_params._packed_weight",
    "._packed_params.weight",
    ".weight",
)


def _layers_of_state(state: Mapping[str, Any] | None) -> list[IntegerLayer]:
    layers = []
    qparams = getattr(state, "activation_qparams", {})
    for name, value in (state or {}).items():
        quantized, bias = (value[0], value[1]) if isinstance(value, tuple) and len(value) == 2 else (value, None)
        if not isinstance(quantized, QuantizedWeight) and not (
            isinstance(quantized, Tensor) and quantized.is_quantized
        ):
            continue
        path = next((name.removesuffix(end) for end in _WEIGHT_SUFFIXES if name.endswith(end)), name)
        scale, zero_point = (state or {}).get(join(path, "scale")), (state or {}).get(join(path, "zero_point"))
        bias = (state or {}).get(join(path, "bias")) if bias is None else bias
        layers.append(
            IntegerLayer(
                path=path,
                class_name="",
                ints=Integers.of(quantized) if isinstance(quantized, QuantizedWeight) else _read(quantized, path),
                bias=None if bias is None else bias.detach().clone(),
                output=qparams.get(
                    path, None if scale is None or zero_point is None else (float(scale), int(zero_point))
                ),
            )
        )
    return layers


def float_layers(side: Side) -> dict[str, FloatLayer]:
    """Every module of the float side that has a weight of two dimensions or more."""
    if side.model is not None:
        found = (_float_layer(path, module) for path, module in side.model.named_modules())
        return {layer.path: layer for layer in found if layer is not None}
    layers = {}
    for name, value in (side.state or {}).items():
        if name.endswith("weight") and isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2:
            path = name.removesuffix("weight").removesuffix(".")
            layers[path] = FloatLayer(path, "", value.detach(), (side.state or {}).get(join(path, "bias")))
    return layers


def _float_layer(path: str, module: nn.Module) -> FloatLayer | None:
    weight = getattr(module, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):
        return None
    if not isinstance(weight, Tensor) or weight.ndim < 2 or not weight.is_floating_point():
        return None
    bias = getattr(module, "bias", None)
    weight, bias = weight.detach(), bias.detach() if isinstance(bias, Tensor) else None
    inner = getattr(module, "bn", None)
    if isinstance(inner, nn.modules.batchnorm._BatchNorm):
        weight, bias = fold_batch_norm(weight, bias, inner, transposed=getattr(module, "transposed", False))
    return FloatLayer(path, class_name(module), weight, bias)


def fold_batch_norm(
    weight: Tensor, bias: Tensor | None, norm: nn.modules.batchnorm._BatchNorm, *, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a layer and the batch norm behind it as one layer."""
    factor, shift = batch_norm_affine(norm)
    axis = 1 if transposed else 0
    view = [1] * weight.ndim
    view[axis] = -1
    bias = torch.zeros_like(shift) if bias is None else bias
    return weight * factor.view(view), bias * factor + shift


def batch_norm_affine(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """(factor, shift) that a batch norm applies per channel in eval mode."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        mean, var = torch.zeros(norm.num_features), torch.ones(norm.num_features)
    factor = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        factor = factor * norm.weight.detach()
    shift = -mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()
