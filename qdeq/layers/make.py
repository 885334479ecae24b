"""Makes float modules from described layers: the one place that writes parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.errors import QdeqError, QdeqValueError, expected
from qdeq.layers.layer import Activation, Later, Layer, Norm, Part, Source, unreadable
from qdeq.report import Report, ReportEntry
from qdeq.tree.walk import children, every_module, shallow_copy
from qdeq.weights import native
from qdeq.weights.dequant import dequantize_source, unpack_source
from qdeq.weights.packed import read_convolutions
from qdeq.weights.weight import QuantizedWeight, report_facts
from qdeq.words import class_name, dtype_name, join

__all__ = ["Made", "hold", "make", "part_value", "without_norm"]


@dataclass(eq=False)
class Made:
    """A float module and the layer that it was made from.

    Attributes:
        layer: the layer.
        module: its float module, without its activation.
        carrier: what gives the output of the quantized layer in the rebuilt model: the module, or what follows it.
        placed: its form has put what rounds its output behind it.

    """

    layer: Layer
    module: nn.Module
    carrier: nn.Module
    placed: bool = False

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter of the float module under its dotted name in the model."""
        for prefix, module in every_module(self.module):
            at = join(self.layer.path, prefix) if prefix else self.layer.path
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    yield join(at, name), parameter


@dataclass(eq=False)
class _Job:
    """One source to write."""

    value: Any
    where: str
    out: Tensor
    entry: dict[str, Any]
    done: bool = False


def make(
    layers: Sequence[Layer], report: Report, *, dtype: torch.dtype, allow_bad_scales: bool, detailed: bool
) -> tuple[list[Made], list[QdeqError]]:
    """Make the float module of every layer, and write the account of it.

    Args:
        layers: described layers.
        report: gets what went where.
        dtype: dtype of every floating-point parameter and buffer.
        allow_bad_scales: take scales that are zero, negative or not finite, with torch's bits.
        detailed: also report scales, zero points and the share of saturated integers, which costs a pass over the
            integers of every weight.

    Returns:
        what was made, and why the others could not be.

    """
    return _Maker(report, dtype, allow_bad_scales, detailed).run(layers)


def hold(module: nn.Module, activation: Activation) -> nn.Module:
    """A layer with its activation in one module: the holder takes over the layer's state."""
    held = _as(activation.holder, module)
    held.__dict__.update(activation.args)
    return held


def without_norm(module: nn.Module, norm: Norm) -> tuple[nn.Module, nn.Module]:
    """A layer as its plain class, which takes over its state, and the batch norm that it held."""
    plain = _as(norm.plain, module)
    held: nn.Module = plain._modules.pop(norm.child)  # type: ignore[assignment] # the layer has it
    return plain, held


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """A module of another class that takes over the state of ``module``."""
    taken = kind.__new__(kind)
    taken.__dict__.update(module.__dict__)
    return taken


def part_value(source: Source) -> Any:
    """What a source is, read if it has to be."""
    return source.value.read() if isinstance(source.value, Later) else source.value


class _Maker:
    def __init__(self, report: Report, dtype: torch.dtype, allow_bad_scales: bool, detailed: bool) -> None:
        self.report, self.dtype = report, dtype
        self.allow_bad_scales, self.detailed = allow_bad_scales, detailed
        self.kernel_dtype = dtype if dtype in native.OUT_DTYPES else torch.float32

    def run(self, layers: Sequence[Layer]) -> tuple[list[Made], list[QdeqError]]:
        failures: list[QdeqError] = []
        laid_out: list[tuple[Layer, nn.Module, list[tuple[Part, Tensor, list[_Job]]]]] = []
        for layer in layers:
            try:
                module = _empty(layer) if layer.made is None else layer.made
                laid_out.append((layer, module, [self._lay_out(layer, module, part) for part in layer.parts]))
            except Exception as error:  # noqa: BLE001 (a broken layer may raise anything, and all are named at once)
                failures.append(unreadable(layer.path, layer.source_class, error))
        self._read_convolutions([job for _, _, parts in laid_out for _, _, jobs in parts for job in jobs])
        made = []
        for layer, module, parts in laid_out:
            try:
                for part, value, jobs in parts:
                    self._write(module, part, value, jobs)
            except Exception as error:  # noqa: BLE001 (as above)
                failures.append(unreadable(layer.path, layer.source_class, error))
                continue
            self._account(layer, module)
            made.append(Made(layer, module, module))
        return made, failures

    def _lay_out(self, layer: Layer, module: nn.Module, part: Part) -> tuple[Part, Tensor, list[_Job]]:
        """Memory for a part, and what to write into which rows of it."""
        declared = _declared(module, part.name)
        values = [part_value(source) for source in part.sources]
        out = native.empty(declared.shape, self._dtype_for(declared, values))
        rows = declared.shape[0] // len(values) if len(values) > 1 else 0
        jobs = []
        for index, (source, value) in enumerate(zip(part.sources, values, strict=True)):
            target = out[index * rows : (index + 1) * rows] if rows else out
            entry = {
                "target": join(layer.path, part.name),
                "source": source.name,
                "source_class": part.source_class or layer.source_class,
                "target_class": class_name(_owner(module, part.name)[0]),
                "shape": tuple(target.shape),
            }
            if rows:
                entry["note"] = f"rows {index * rows} to {(index + 1) * rows - 1}"
            jobs.append(_Job(value, source.name, target, entry))
        return part, out, jobs

    def _dtype_for(self, declared: Tensor, values: list[Any]) -> torch.dtype:
        if not declared.is_floating_point():
            return declared.dtype
        if all(_is_plain(value) and value.is_floating_point() for value in values):
            return torch.promote_types(values[0].dtype, torch.float32)
        return self.kernel_dtype

    def _read_convolutions(self, jobs: list[_Job]) -> None:
        """Read all packed 2-d convolutions in one call: for small ones the calls cost more than the weights."""
        found = [job for job in jobs if isinstance(job.value, torch.ScriptObject) and job.out.dim() == 4]
        results = read_convolutions(
            [job.value for job in found], [job.out for job in found], allow_bad_scales=self.allow_bad_scales
        )
        for job, (done, _) in zip(found, results, strict=True):
            job.done = done

    def _write(self, module: nn.Module, part: Part, value: Tensor, jobs: list[_Job]) -> None:
        for job in jobs:
            if not job.done:
                _read(job, self.allow_bad_scales)
            self.report.entries.append(ReportEntry(**job.entry, **self._details(job)))
        if value.dtype != self.dtype and value.is_floating_point():
            value = value.to(self.dtype)
        target, name = _owner(module, part.name)
        if target._parameters.get(name) is not None:
            target._parameters[name] = nn.Parameter(value)
        else:
            target._buffers[name] = value

    def _details(self, job: _Job) -> dict[str, Any]:
        if _is_plain(job.value):
            return {"dtype": dtype_name(job.value.dtype)}
        if not self.detailed:
            return {"dtype": "", "qscheme": ""}
        weight = unpack_source(job.value, where=job.where)
        return {**report_facts(weight), "saturated_share": weight.saturated_share()}

    def _account(self, layer: Layer, module: nn.Module) -> None:
        for name, value in layer.attributes.items():
            setattr(module, name, value)
        self.report.dropped.extend(layer.dropped)
        for text in layer.notes:
            self.report.note(layer.path, text)
        if layer.made is not None:
            self._list_made(layer, module)
        if layer.output is not None:
            self.report.activation_qparams[layer.path] = (layer.output.scale, layer.output.zero_point)
            if layer.output.dtype:
                self.report.activation_dtypes[layer.path] = layer.output.dtype

    def _list_made(self, layer: Layer, module: nn.Module) -> None:
        classes = layer.source_class, class_name(module)
        for name, parameter in module.named_parameters():
            target, source = join(layer.path, name), layer.path or "model"
            note = "written by the registered builder"
            self.report.entries.append(ReportEntry(target, source, *classes, tuple(parameter.shape), "", note=note))


def _empty(layer: Layer) -> nn.Module:
    """The float module on the meta device: nothing is initialised at random, so nothing random can stay."""
    if not layer.parts:
        return layer.kind(**layer.args)
    args = {name: tuple(value) if isinstance(value, list) else value for name, value in layer.args.items()}
    made = _template(layer.kind, tuple(args.items()))
    return layer.kind(**args, device="meta") if children(made) else shallow_copy(made)


@functools.lru_cache(maxsize=512)
def _template(kind: Callable[..., nn.Module], args: tuple[tuple[str, Any], ...]) -> nn.Module:
    """A module to copy: torch initialises parameters on the meta device, too, which takes most of the time."""
    return kind(**dict(args), device="meta")


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer of dotted name, and its name there."""
    owner, _, own = name.rpartition(".")
    return (module.get_submodule(owner) if owner else module), own


def _declared(module: nn.Module, name: str) -> Tensor:
    target, own = _owner(module, name)
    parameter = target._parameters.get(own)
    declared = target._buffers.get(own) if parameter is None else parameter
    if declared is None:
        raise AttributeError(f"{type(target).__name__} has no parameter or buffer {own!r}")
    return declared


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_quantized


def _read(job: _Job, allow_bad_scales: bool) -> None:
    """Write the values of a source into the job's memory."""
    value, out = job.value, job.out
    if _is_plain(value):
        if value.shape != out.shape:
            remedy = "Convert the model again."
            raise QdeqValueError(expected(job.where, f"shape {tuple(out.shape)}", str(tuple(value.shape)), remedy))
        out.copy_(value.detach())
        return
    if out.dim() == 3 and (not isinstance(value, Tensor | QuantizedWeight) or len(value.shape) == 4):
        out = out.unsqueeze(2)  # a packed Conv1d is stored, and read, as a Conv2d of height 1
    if out.dtype is torch.float32 and isinstance(value, Tensor) and native.dequantize_direct(value, out) is not None:
        return
    try:
        dequantize_source(value, where=job.where, out=out, dtype=out.dtype, allow_bad_scales=allow_bad_scales)
    except QdeqError as error:
        shape = _shape_of(value, job.where)
        if shape is None or shape == tuple(out.shape):
            raise
        remedy = "The module was changed after its weight was packed: convert the model again."
        wanted = f"shape {tuple(out.shape)}, as its module declares"
        raise QdeqValueError(expected(job.where, wanted, str(shape), remedy)) from error


def _shape_of(value: Any, where: str) -> tuple[int, ...] | None:
    """The shape of a source, None where it cannot be unpacked."""
    try:
        return tuple(unpack_source(value, where=where).shape)
    except QdeqError:
        return None
