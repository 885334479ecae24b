"""``dequantize_model``: a converted model in, the float model it stands for out, everything accounted for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import nn

from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError, expected
from qdeq.forms import is_quantized_module, quantized_sources, unsupported_form
from qdeq.mappings import BUILDERS
from qdeq.modules.build import Build, Fused, class_name, join
from qdeq.report import Report, Unconverted
from qdeq.slots import find_slots

__all__ = ["dequantize_model"]

# Attributes of quantized modules that describe their quantization; everything else a user put there is kept.
_QUANTIZATION_ATTRIBUTES = {"scale", "zero_point", "dtype", "version", "transposed"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@overload
def dequantize_model(
    model: nn.Module,
    *,
    strict: bool = True,
    return_report: Literal[False] = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
) -> nn.Module: ...


@overload
def dequantize_model(
    model: nn.Module,
    *,
    strict: bool = True,
    return_report: Literal[True],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
) -> tuple[nn.Module, Report]: ...


def dequantize_model(
    model: nn.Module,
    *,
    strict: bool = True,
    return_report: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
) -> nn.Module | tuple[nn.Module, Report]:
    """Rebuild the float model that a converted (int8) model stands for.

    Every weight equals the ``dequantize()`` of the packed weight bit for bit; every bias is copied. The result is an
    ordinary float model of the same names: a fused ``ConvReLU2d`` followed by the ``Identity`` that held its ReLU
    becomes ``Conv2d`` and ``ReLU`` in those two places. Where no such place can be proven, the activation stays in
    the layer (:class:`qdeq.modules.conv.ConvReLU2d`, same parameter names). Stubs become ``nn.Identity``. Modules
    used in two places stay shared.

    The result shares no memory with ``model``, which is left untouched. Rebuilt parameters are contiguous with
    ``requires_grad=True``; parameters of float modules keep their flag. Rebuilt modules take the training mode of
    the module around them, float modules keep theirs.

    Args:
        model: eager-mode model after ``torch.ao.quantization.convert``, on the CPU.
        strict: with False, quantized modules that are not known are kept as deep copies and listed in the report,
            and a model without anything quantized is copied; with True both are errors.
        return_report: also return the :class:`qdeq.Report`.
        dtype: dtype of every floating-point parameter and buffer of the result; the values are rounded to nearest
            even from the exact float32 ones.
        device: device of the result; the CPU by default.
        allow_bad_scales: take scales that are zero, negative or not finite, with the bits that torch gives.

    Returns:
        The float model, or ``(float model, report)``.

    Raises:
        QdeqTypeError: ``model`` is not a module, or ``dtype`` is not a floating-point dtype.
        QdeqValueError: the model holds nothing quantized, comes in a form that cannot be read, holds quantized
            modules that are not known (all are named), or a weight cannot be read. Nothing is half done.

    """
    _check_arguments(model, dtype)
    build = Build(dtype=dtype, allow_bad_scales=allow_bad_scales, detailed=return_report)
    rebuilt = _rebuild_all(model, build, strict)
    result = _assemble(model, rebuilt, build)
    _check_account(model, result, rebuilt, build.report)
    result = _cast(result, dtype, device)
    return (result, build.report) if return_report else result


def _check_arguments(model: object, dtype: torch.dtype) -> None:
    if not isinstance(model, nn.Module):
        remedy = "For a state_dict use dequantize_state_dict, for a tensor dequantize."
        raise QdeqTypeError(expected("model", "a torch.nn.Module", class_name(model), remedy))
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise QdeqTypeError(expected("dtype", "a floating-point torch.dtype", str(dtype), "Pass torch.float32."))
    form = unsupported_form(model)
    if form is not None:
        raise QdeqValueError(expected("model", "an eager model after convert()", *form))
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            remedy = "Load its weights before converting it."
            raise QdeqValueError(expected(name, "a tensor with data", "one on the meta device", remedy))


def _rebuild_all(model: nn.Module, build: Build, strict: bool) -> dict[str, nn.Module | Fused]:
    """Rebuild every known quantized module once; collect all unknown ones into one error."""
    rebuilt: dict[str, nn.Module | Fused] = {}
    unknown: list[Unconverted] = []

    def visit(module: nn.Module, path: str, seen: set[int]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        builder = BUILDERS.get(type(module))
        if builder is not None:
            rebuilt[path] = builder(module, path, build)
            return
        if is_quantized_module(module):
            unknown.append(Unconverted(path, class_name(module), "no builder is registered for this class"))
            return
        for name, child in module.named_children():
            visit(child, join(path, name), seen)

    visit(model, "", set())
    if unknown and strict:
        names = "; ".join(f"{item.path or 'the model itself'} is {item.module_class}" for item in unknown)
        remedy = "Pass strict=False to keep them quantized."
        raise QdeqValueError(expected("model", "only quantized modules that qdeq knows", names, remedy))
    if not rebuilt and not unknown and strict:
        remedy = "It is a float model already; pass strict=False for a copy."
        raise QdeqValueError(expected("model", "at least one quantized module", "none", remedy))
    build.report.unconverted.extend(unknown)
    return rebuilt


def _assemble(model: nn.Module, rebuilt: dict[str, nn.Module | Fused], build: Build) -> nn.Module:
    """Copy everything that is float around the rebuilt modules.

    deepcopy with a memo that already maps each quantized module to its rebuilt form never touches a packed weight,
    keeps shared modules shared, and follows modules that sit in lists or other plain attributes.
    """
    fused = {path: item.slots for path, item in rebuilt.items() if isinstance(item, Fused)}
    slots, reasons = find_slots(model, fused)
    memo: dict[int, Any] = {}
    for path, item in rebuilt.items():
        source = model.get_submodule(path)
        target, activation = _place(path, item, slots.get(path), reasons.get(path, ""), build.report)
        mode = _training_mode(model, path)
        target.train(mode)
        if activation is not None:
            memo[id(slots[path])] = activation.train(mode)
        _carry_over(source, target, path, build.report)
        memo[id(source)] = target
        build.report.replaced[path] = (class_name(source), class_name(target))
    return _deepcopy(model, memo)


def _place(
    path: str, item: nn.Module | Fused, slot: nn.Module | None, reason: str, report: Report
) -> tuple[nn.Module, nn.Module | None]:
    if not isinstance(item, Fused):
        return item, None
    activation = item.activation()
    name = type(activation).__name__
    if slot is None:
        report.note(path, f"{name} kept inside {item.holder.__name__}: {reason}")
        return item.hold(), None
    report.note(path, f"{name} put back into the Identity that held its place")
    return item.layer, activation


def _training_mode(model: nn.Module, path: str) -> bool:
    # convert() leaves every converted leaf at training=True, also in an eval model: only the parent knows.
    parent = path.rpartition(".")[0]
    return model.get_submodule(parent).training if path else model.training


def _carry_over(source: nn.Module, target: nn.Module, path: str, report: Report) -> None:
    known = set(target.__dict__) | _QUANTIZATION_ATTRIBUTES | {name for name, _ in quantized_sources(source)}
    for name, value in source.__dict__.items():
        if name not in known and not name.startswith("_"):
            setattr(target, name, copy.deepcopy(value))
    for name in _HOOKS:
        hooks = getattr(source, name)
        if hooks:
            getattr(target, name).update(hooks)
            report.note(path, f"{len(hooks)} {name.strip('_').replace('_', ' ')} kept")


def _deepcopy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        copied: nn.Module = copy.deepcopy(model, memo)
    except QdeqError:
        raise
    except Exception as error:
        remedy = "Remove what cannot be copied from the model, or give its class a __deepcopy__."
        message = expected(
            "model", "float parts that copy.deepcopy can copy", f"{type(error).__name__}: {error}", remedy
        )
        raise QdeqValueError(message) from error
    for parameter in copied.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()
    return copied


def _check_account(model: nn.Module, result: nn.Module, rebuilt: dict[str, nn.Module | Fused], report: Report) -> None:
    """Every source tensor used or named, every target parameter written: anything else is an error."""
    accounted = report.accounted_sources()
    unused = [
        name for path in rebuilt for name in _source_names(model.get_submodule(path), path) if name not in accounted
    ]
    unwritten = [name for name, parameter in result.named_parameters() if parameter.is_meta]
    written = {entry.target for entry in report.entries}
    for path in rebuilt:
        target = result.get_submodule(path)
        unwritten += [
            join(path, name)
            for name, _ in target.named_parameters()
            if join(path, name) not in written and join(path, name) not in unwritten
        ]
    if unused or unwritten:
        got = f"unused sources {unused}, unwritten parameters {unwritten}"
        message = expected("model", "every tensor accounted for", got, "The builder of these modules is incomplete.")
        raise QdeqValueError(message)


def _source_names(module: nn.Module, path: str) -> list[str]:
    names = []
    for prefix, part in module.named_modules():
        # A packed weight stands for a weight and a bias, wherever the module keeps it.
        for name, value in quantized_sources(part):
            packed = isinstance(value, torch.ScriptObject)
            names += [join(path, "weight")] if packed else [join(path, join(prefix, name))]
            if packed and value.bias() is not None:
                names.append(join(path, "bias"))
        names += [join(path, join(prefix, name)) for name, _ in part.named_parameters(recurse=False)]
        names += [join(path, join(prefix, name)) for name, _ in part.named_buffers(recurse=False)]
    if hasattr(module, "scale") and hasattr(module, "zero_point"):
        names += [join(path, "scale"), join(path, "zero_point")]
    return list(dict.fromkeys(names))


def _cast(result: nn.Module, dtype: torch.dtype, device: torch.device | str | None) -> nn.Module:
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: (  # noqa: E731 (nn.Module._apply takes a function)
        tensor.to(dtype) if tensor.is_floating_point() else tensor
    )
    result = result._apply(convert)
    return result if device is None else result.to(device)
