"""What every builder works with: reading source tensors, filling parameters, keeping account."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.layers.fused import Fused
from qdeq.report import DroppedSource, Report, ReportEntry
from qdeq.sources.eager.sources import declared_tensor, is_float_tensor, shape_of, weight_details
from qdeq.weights import native as ops
from qdeq.weights.dequant import dequantize_source, unpack_source
from qdeq.weights.packed import open_packed, read_convolutions
from qdeq.words import class_name, join

__all__ = ["Build", "Builder", "Fused", "Rule"]


_CONV_1D = (nn.Conv1d, nn.ConvTranspose1d)


@dataclass
class Build:
    """The state of one conversion, handed to every builder.

    Attributes:
        report: the account that the builders write.
        dtype: dtype of every floating-point parameter and buffer of the result.
        allow_bad_scales: take scales that are zero, negative or not finite, with torch's bits.
        detailed: also record scales, zero points and the share of saturated integers, which costs a pass over the
            integers of every weight.
        recover_direct_conv: the caller states that no module was copied or loaded after it was converted.

    """

    report: Report = field(default_factory=Report)
    dtype: torch.dtype = torch.float32
    allow_bad_scales: bool = False
    detailed: bool = False
    recover_direct_conv: bool = False
    # id of a packed weight that was read ahead -> its values and its bias.
    _ahead: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    # The packed weight whose bias was just read, and what to read its weight from.
    _opened: tuple[Any, Any] = (None, None)
    # Identities of what was read: the model keeps its packed weights alive, so no other source can have the same.
    _used: set[int] = field(default_factory=set)
    _used_bias: set[int] = field(default_factory=set)

    def read_ahead(self, convolutions: Sequence[tuple[Any, tuple[int, ...]]]) -> None:
        """Read the weights and biases of many 2-d convolutions at once; :meth:`weight` then finds them done.

        Args:
            convolutions: (packed weight, its shape).

        """
        packed = [source for source, _ in convolutions]
        outs = [ops.empty(shape, self._kernel_dtype()) for _, shape in convolutions]
        results = read_convolutions(packed, outs, allow_bad_scales=self.allow_bad_scales)
        for source, out, (done, bias) in zip(packed, outs, results, strict=True):
            if done:
                self._ahead[id(source)] = out, bias

    def weight(
        self, source: Any, module: nn.Module, path: str, target: nn.Module, name: str = "weight", source_name: str = ""
    ) -> None:
        """Dequantize ``source`` straight into ``target``'s parameter ``name``.

        Args:
            source: quantized tensor or packed weight.
            module: the quantized module that holds it.
            path: dotted path of ``module``.
            target: float module whose parameter ``name``, on the meta device, gives the shape.
            name: name of the parameter in the float module.
            source_name: name of the source in the quantized module; ``name`` by default.

        """
        self.stack([(source_name or name, source)], module, path, target, name)

    def stack(
        self, parts: Sequence[tuple[str, Any]], module: nn.Module, path: str, target: nn.Module, name: str
    ) -> None:
        """Write several sources, one below the other, into ``target``'s parameter ``name``.

        Args:
            parts: (name of the source, source); a source is a quantized tensor, a packed weight or a float tensor.
                All have the same number of rows.
            module: the quantized module that holds them.
            path: dotted path of ``module``.
            target: float module whose parameter or buffer ``name``, on the meta device, gives the shape.
            name: name of the parameter or buffer in the float module.

        """
        declared = declared_tensor(target, name)
        ahead = self._ahead.get(id(parts[0][1])) if len(parts) == 1 else None
        done = ahead is not None and ahead[0].shape == declared.shape
        if ahead and done:
            value = ahead[0]
            del self._ahead[id(parts[0][1])]  # another module with the same packed weight gets values of its own
        else:
            value = ops.empty(declared.shape, self._dtype_for(declared, parts))
        target_name, classes = join(path, name), (class_name(module), class_name(target))
        num_rows = value.shape[0] // len(parts) if len(parts) > 1 else 0
        entries = []
        for index, (source_name, source) in enumerate(parts):
            out = value[index * num_rows : (index + 1) * num_rows] if num_rows else value
            where = join(path, source_name)
            details = self._details(source, where) if done else self._read(source, where, target, out)
            if num_rows:
                details["note"] = f"rows {index * num_rows} to {(index + 1) * num_rows - 1}"
            entries.append(ReportEntry(target_name, where, *classes, tuple(out.shape), **details))
        if value.dtype != self.dtype and value.is_floating_point():
            value = value.to(self.dtype)
        if isinstance(declared, nn.Parameter):
            target._parameters[name] = nn.Parameter(value)
        else:
            target._buffers[name] = value
        self.report.entries.extend(entries)

    def packed_bias(
        self, packed: Any, module: nn.Module, path: str, target: nn.Module, name: str = "bias", source_name: str = ""
    ) -> None:
        """Copy the bias of a packed weight into ``target``'s ``name``; see :meth:`biases`."""
        bias = self.read_bias(packed, path, source_name or name)
        self.biases([(source_name or name, bias)], module, path, target, name)

    def read_bias(self, packed: Any, path: str, name: str = "bias") -> Tensor | None:
        """A copy of the bias of a packed weight, counted as read; None where it has none.

        A builder that must know whether there is one reads it once and hands it to :meth:`biases`: most engines
        unpack the whole weight to give it.
        """
        self.use_bias(packed)
        if id(packed) in self._ahead:
            return self._ahead[id(packed)][1]
        weight, bias = open_packed(packed, where=join(path, name))
        self._opened = packed, weight
        return bias

    def biases(
        self, parts: Sequence[tuple[str, Tensor | None]], module: nn.Module, path: str, target: nn.Module, name: str
    ) -> None:
        """Copy biases, one below the other, into ``target``'s parameter ``name``.

        A bias must be missing in both or in neither. Zeros may be left out: qnnpack stores zeros for a layer that
        has no bias, and then ``target`` has none where the quantized module says so.
        """
        present = [(source_name, bias) for source_name, bias in parts if bias is not None]
        if target._parameters.get(name) is None:
            for source_name, bias in present:
                if bias.any():
                    where, remedy = join(path, source_name), "Convert the model again."
                    raise QdeqValueError(expected(where, "no bias, as its module declares", "a bias", remedy))
                self.drop(path, source_name, "zeros that qnnpack stores for a layer without a bias")
            return
        if len(present) != len(parts):
            where, remedy = join(path, name), "Convert the model again."
            raise QdeqValueError(expected(where, "a bias, as its module declares", "none", remedy))
        self.stack(present, module, path, target, name)
        for source_name, bias in present:
            self.note_zero_bias(bias, path, source_name)

    def note_zero_bias(self, bias: Tensor, path: str, name: str = "bias") -> None:
        """Say that a bias may be one the layer never had: qnnpack stores zeros where there was none."""
        if bias.numel() and not bias[0] and not bias.any():
            self.report.note(path, f"{name} is all zeros, as qnnpack stores a layer without one; it is kept")

    def tensor(
        self, value: Tensor, module: nn.Module, path: str, target: nn.Module, name: str, source_name: str = ""
    ) -> None:
        """Copy a float tensor into ``target``'s parameter or buffer ``name``."""
        self.stack([(source_name or name, value)], module, path, target, name)

    def use(self, source: Any) -> None:
        """Count a packed weight or quantized tensor as read; :meth:`weight` and :meth:`stack` do so themselves."""
        self._used.add(id(source))

    def use_bias(self, packed: Any) -> None:
        """Count the bias of a packed weight as read; :meth:`packed_bias` does so itself."""
        self._used_bias.add(id(packed))

    def is_used(self, source: Any) -> bool:
        """Whether a source was read."""
        return id(source) in self._used

    def is_bias_used(self, packed: Any) -> bool:
        """Whether the bias of a packed weight was read."""
        return id(packed) in self._used_bias

    def _dtype_for(self, declared: Tensor, parts: Sequence[tuple[str, Any]]) -> torch.dtype:
        if not declared.is_floating_point():
            return declared.dtype
        if all(is_float_tensor(source) for _, source in parts):
            dtype: torch.dtype = parts[0][1].dtype
            return dtype if dtype is torch.float32 else torch.promote_types(dtype, torch.float32)
        return self._kernel_dtype()

    def _kernel_dtype(self) -> torch.dtype:
        # The kernels write these directly; any other floating dtype is rounded from the exact float32 result.
        return self.dtype if self.dtype in ops.OUT_DTYPES else torch.float32

    def _read(self, source: Any, where: str, target: nn.Module, out: Tensor) -> dict[str, Any]:
        """Write the values of ``source`` into ``out``; return what the report says about them."""
        self.use(source)
        if isinstance(source, Tensor) and not source.is_quantized:
            if source.shape != out.shape:
                message = expected(
                    where, f"shape {tuple(out.shape)}", str(tuple(source.shape)), "Convert the model again."
                )
                raise QdeqValueError(message)
            out.copy_(source.detach())
            return {"dtype": str(source.dtype).removeprefix("torch.")}
        if source is self._opened[0]:
            readable, self._opened = self._opened[1], (None, None)
        else:
            readable = source
        # A packed Conv1d is stored, and read, as a Conv2d of height 1.
        if isinstance(target, _CONV_1D) and not isinstance(source, Tensor):
            out = out.unsqueeze(2)
        if (
            out.dtype is torch.float32
            and isinstance(readable, Tensor)
            and ops.dequantize_direct(readable, out) is not None
        ):
            return self._details(source, where)
        try:
            dequantize_source(readable, where=where, out=out, dtype=out.dtype, allow_bad_scales=self.allow_bad_scales)
        except QdeqError as error:
            shape = shape_of(source, where)
            if shape is None or shape == tuple(out.shape):
                raise
            remedy = "The module was changed after its weight was packed: convert the model again."
            wanted = f"shape {tuple(out.shape)}, as its module declares"
            raise QdeqValueError(expected(where, wanted, str(shape), remedy)) from error
        return self._details(source, where)

    def _details(self, source: Any, where: str) -> dict[str, Any]:
        self.use(source)
        return weight_details(unpack_source(source, where=where)) if self.detailed else {"dtype": "", "qscheme": ""}

    def drop(self, path: str, name: str, reason: str, value: float | int | None = None) -> None:
        """Name a source that has no place in the float model."""
        self.report.dropped.append(DroppedSource(join(path, name), reason, value))

    def output_qparams(self, module: Any, path: str, prefix: str = "") -> None:
        """Set the scale and zero point of a module's quantized output aside.

        Args:
            module: the quantized module.
            path: its dotted path.
            prefix: what the names ``scale`` and ``zero_point`` start with in this class.

        """
        scale, zero_point = float(getattr(module, prefix + "scale")), int(getattr(module, prefix + "zero_point"))
        self.report.activation_qparams[path] = (scale, zero_point)
        self.drop(path, prefix + "scale", "quantization of the output", scale)
        self.drop(path, prefix + "zero_point", "quantization of the output", zero_point)

    def drop_qparams(self, module: Any, path: str, reason: str, prefix: str = "") -> None:
        """Name a scale and zero point that have no place in the float model."""
        self.drop(path, prefix + "scale", reason, float(getattr(module, prefix + "scale")))
        self.drop(path, prefix + "zero_point", reason, int(getattr(module, prefix + "zero_point")))


Builder: TypeAlias = Callable[[Any, str, Build], nn.Module | Fused]


@dataclass(frozen=True)
class Rule:
    """What a quantized class becomes.

    Attributes:
        builder: makes the float module.
        becomes: the float class, for the table of what is supported.
        note: what a user should know about this class; empty where there is nothing to say.

    """

    builder: Builder
    becomes: str
    note: str = ""
