"""What every builder works with: reading source tensors, filling parameters, keeping account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qdeq.dequant import dequantize_source, unpack_source
from qdeq.errors import QdeqValueError, expected
from qdeq.packed import packed_bias
from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.weight import QuantizedWeight

__all__ = ["Build", "Builder", "Fused", "class_name", "join"]

# The kernels write these directly; any other floating dtype is converted from the exact float32 result.
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def join(path: str, name: str) -> str:
    """The dotted name of ``name`` in the module at ``path`` (empty for the model itself)."""
    return f"{path}.{name}" if path else name


def class_name(obj: object) -> str:
    """The class of ``obj`` as a user would import it, without the ``modules.<file>`` part of torch's packages."""
    cls = type(obj)
    module = cls.__module__.partition(".modules")[0]
    return f"{module}.{cls.__qualname__}"


@dataclass
class Fused:
    """A rebuilt layer and the activation that its quantized form owned.

    Attributes:
        layer: the float layer, without the activation.
        activation: makes the float activation module.
        holder: subclass of the layer's class that applies the activation itself, with the same parameter names;
            used where no slot for the activation can be proven.
        slots: how many ``nn.Identity`` places fusing may have left behind the layer, at most.

    """

    layer: nn.Module
    activation: Callable[[], nn.Module]
    holder: type[nn.Module]
    slots: int

    def hold(self) -> nn.Module:
        """The layer with its activation in one module: the holder takes over the layer's state."""
        held = self.holder.__new__(self.holder)
        held.__dict__.update(self.layer.__dict__)
        return held


@dataclass
class Build:
    """The state of one conversion, handed to every builder.

    Attributes:
        report: the account that the builders write.
        dtype: dtype of every floating-point parameter and buffer of the result.
        allow_bad_scales: take scales that are zero, negative or not finite, with torch's bits.
        detailed: also record scales, zero points and the share of saturated integers, which costs a pass over the
            integers of every weight.

    """

    report: Report = field(default_factory=Report)
    dtype: torch.dtype = torch.float32
    allow_bad_scales: bool = False
    detailed: bool = False

    def weight(self, source: Any, module: nn.Module, path: str, target: nn.Module, name: str = "weight") -> None:
        """Dequantize ``source`` straight into ``target``'s parameter ``name``.

        Args:
            source: quantized tensor or packed weight.
            module: the quantized module that holds it.
            path: dotted path of ``module``.
            target: float module whose parameter ``name``, on the meta device, gives the shape.
            name: name of the parameter in both modules.

        """
        where = join(path, name)
        shape = tuple(target.get_parameter(name).shape)
        kernel_dtype = self.dtype if self.dtype in KERNEL_DTYPES else torch.float32
        value = torch.empty(shape, dtype=kernel_dtype)
        # A packed Conv1d is stored, and read, as a Conv2d of height 1.
        out = value.unsqueeze(2) if isinstance(target, nn.Conv1d | nn.ConvTranspose1d) else value
        dequantize_source(source, where=where, out=out, dtype=kernel_dtype, allow_bad_scales=self.allow_bad_scales)
        details = _details(unpack_source(source, where=where)) if self.detailed else {"dtype": "", "qscheme": ""}
        self._write(value, module, path, target, name, details)

    def packed_bias(self, packed: Any, module: nn.Module, path: str, target: nn.Module) -> None:
        """Copy the bias of a packed weight into ``target.bias``; a missing bias must be missing in both."""
        bias = packed_bias(packed)
        if (bias is None) != (target.bias is None):
            have = "no bias" if bias is None else "a bias"
            message = expected(
                join(path, "bias"), "packed weight and module to agree", have, "Convert the model again."
            )
            raise QdeqValueError(message)
        if bias is not None:
            self.tensor(bias, module, path, target, "bias")

    def tensor(self, value: Tensor, module: nn.Module, path: str, target: nn.Module, name: str) -> None:
        """Copy a float tensor into ``target``'s parameter ``name``."""
        expected_shape = tuple(target.get_parameter(name).shape)
        if tuple(value.shape) != expected_shape:
            message = expected(
                join(path, name), f"shape {expected_shape}", str(tuple(value.shape)), "Convert the model again."
            )
            raise QdeqValueError(message)
        details = {"dtype": str(value.dtype).removeprefix("torch.")}
        copied = torch.empty(expected_shape, dtype=value.dtype).copy_(value.detach())
        self._write(copied, module, path, target, name, details)

    def drop(self, path: str, name: str, reason: str, value: float | int | None = None) -> None:
        """Name a source that has no place in the float model."""
        self.report.dropped.append(DroppedSource(join(path, name), reason, value))

    def output_qparams(self, module: Any, path: str) -> None:
        """Set the scale and zero point of a module's quantized output aside."""
        scale, zero_point = float(module.scale), int(module.zero_point)
        self.report.activation_qparams[path] = (scale, zero_point)
        self.drop(path, "scale", "quantization of the output", scale)
        self.drop(path, "zero_point", "quantization of the output", zero_point)

    def _write(
        self, value: Tensor, module: nn.Module, path: str, target: nn.Module, name: str, details: dict[str, Any]
    ) -> None:
        setattr(target, name, nn.Parameter(value.to(self.dtype)))
        entry = ReportEntry(
            target=join(path, name),
            source=join(path, name),
            source_class=class_name(module),
            target_class=class_name(target),
            shape=tuple(value.shape),
            **details,
        )
        self.report.entries.append(entry)


Builder: TypeAlias = Callable[[Any, str, Build], nn.Module | Fused]


def _details(weight: QuantizedWeight) -> dict[str, Any]:
    return {
        "dtype": weight.dtype,
        "qscheme": weight.qscheme,
        "scale_min": float(weight.scale.min()) if weight.scale.numel() else None,
        "scale_max": float(weight.scale.max()) if weight.scale.numel() else None,
        "zero_point_min": float(weight.zero_point.min()) if weight.zero_point.numel() else None,
        "zero_point_max": float(weight.zero_point.max()) if weight.zero_point.numel() else None,
        "saturated_share": weight.saturated_share(),
    }
