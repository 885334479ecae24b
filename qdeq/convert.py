"""``dequantize_model``: a converted model in, the float model it stands for out, everything accounted for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from qdeq.activations import check_mode, imitate
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError, expected
from qdeq.forms import is_packed_object, is_quantized_module, plain_values, unsupported_form
from qdeq.modules.build import Build, Fused, class_name, join
from qdeq.rebuilt import Rebuilt, carry_over, check_account
from qdeq.registry import find_builder
from qdeq.report import Report, Unconverted
from qdeq.slots import find_slots
from qdeq.unfold import check_unfold, unfold

__all__ = ["dequantize_model"]


@overload
def dequantize_model(
    model: nn.Module,
    *,
    strict: bool = True,
    return_report: Literal[False] = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
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
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
) -> tuple[nn.Module, Report]: ...


def dequantize_model(
    model: nn.Module,
    *,
    strict: bool = True,
    return_report: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
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
        activations: what becomes of the quantization of activations: ``"drop"`` leaves the float model alone;
            ``"clamp"`` clamps each converted output to the range that its scale and zero point represent;
            ``"fake_quant"`` also rounds it to their grid, and does the same after functions that torch rounds on
            quantized tensors, so that the float model computes what the int8 one does. Parameter names stay the
            same; ``scale`` and ``zero_point`` become buffers. :func:`qdeq.drop_activations` takes them out again.
        unfold_bn: put BatchNorm layers back into the places that fusing emptied, as exact identities in float32:
            True for any eps up to 2**-9, or the eps they will run with. The bias moves into the BatchNorm.
        recover_direct_conv: you state that ``model`` was converted in this process and never copied, saved or
            loaded. fbgemm's direct transposed convolution (``ConvTranspose2d``, kernel (2, 1..6), stride 1 or 2, no
            padding, channels divisible by 8, groups 1) is then read by running it. torch hands out uninitialized
            memory for such a weight, a copy was packed from that and cannot be told from the original, so by default
            these modules are refused.

    Returns:
        The float model, or ``(float model, report)``.

    Raises:
        QdeqTypeError: ``model`` is not a module, or ``dtype`` is not a floating-point dtype.
        QdeqValueError: the model holds nothing quantized, comes in a form that cannot be read, holds quantized
            modules that are not known (all are named), or a weight cannot be read. Nothing is half done.

    """
    _check_arguments(model, dtype)
    check_mode(activations)
    check_unfold(unfold_bn, dtype)
    build = Build(
        dtype=dtype,
        allow_bad_scales=allow_bad_scales,
        detailed=return_report,
        recover_direct_conv=recover_direct_conv,
    )
    rebuilt = _rebuild_all(model, build, strict)
    result = _assemble(model, rebuilt, build, unfold_bn)
    check_account(result, rebuilt, build)
    placed = {part.path: (part.target, part.carrier) for part in rebuilt if part.target and part.carrier}
    imitate(result, placed, activations, build.report)
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


def _rebuild_all(model: nn.Module, build: Build, strict: bool) -> list[Rebuilt]:
    """Rebuild every known quantized module once; collect everything that cannot be rebuilt into one error."""
    rebuilt: list[Rebuilt] = []
    unknown: list[Unconverted] = []
    failures: list[QdeqError] = []
    for path, module, parent in _walk(model):
        builder = find_builder(type(module))
        if builder is not None:
            try:
                rebuilt.append(Rebuilt(path, module, parent, builder(module, path, build)))
            except QdeqError as error:
                failures.append(_named(error, path))
            except Exception as error:  # noqa: BLE001 (a broken module may raise anything, and all are named at once)
                failures.append(_unreadable(module, path, error))
        elif is_quantized_module(module):
            unknown.append(Unconverted(path, class_name(module), "no builder is registered for this class"))
    if unknown and strict:
        names = "; ".join(f"{item.path or 'the model itself'} is {item.module_class}" for item in unknown)
        remedy = "Teach it with qdeq.register, or pass strict=False to keep them quantized."
        failures.append(QdeqValueError(expected("model", "only quantized modules that qdeq knows", names, remedy)))
    if not rebuilt and not unknown and not failures and strict:
        remedy = "It is a float model already; pass strict=False for a copy."
        raise QdeqValueError(expected("model", "at least one quantized module", "none", remedy))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise QdeqValueError(f"model: expected modules that can be rebuilt, got {len(failures)} problems.{lines}")
    build.report.unconverted.extend(unknown)
    return rebuilt


def _named(error: QdeqError, path: str) -> QdeqError:
    return error if str(error).startswith(path) else type(error)(f"{path}: {error}")


def _unreadable(module: nn.Module, path: str, error: Exception) -> QdeqError:
    what = f"a {class_name(module)} that can be read"
    remedy = "It may be half converted, or torch cannot unpack it on this engine: convert it again."
    failure = QdeqValueError(expected(path or "model", what, f"{type(error).__name__}: {error}", remedy))
    failure.__cause__ = error
    return failure


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield (path, module, parent) once per module, registered ones first, then those in plain attributes.

    Does not enter modules that have a builder or are quantized themselves.
    """
    seen: set[int] = set()
    entered: list[tuple[str, nn.Module]] = []

    def visit(path: str, module: nn.Module, parent: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield path, module, parent
        if find_builder(type(module)) is None and not is_quantized_module(module):
            entered.append((path, module))
            for name, child in module.named_children():
                yield from visit(join(path, name), child, module)

    yield from visit("", model, model)
    for path, module in entered:  # grows while it runs
        for name, value in plain_values(module):
            if isinstance(value, nn.Module):
                yield from visit(join(path, name), value, module)


def _assemble(model: nn.Module, rebuilt: list[Rebuilt], build: Build, unfold_bn: bool | float) -> nn.Module:
    """Copy everything that is float around the rebuilt modules.

    deepcopy with a memo that already maps each quantized module to its rebuilt form never touches a packed weight,
    keeps shared modules shared, and follows modules that sit in lists or other plain attributes.
    """
    registered = {path for path, _ in model.named_modules()}
    fused = {part.path: part.item.slots for part in rebuilt if isinstance(part.item, Fused) and part.path in registered}
    slots, reasons = find_slots(model, fused)
    memo = _tensors_with_history(model)
    for part in rebuilt:
        reason = reasons.get(part.path, "it is not registered as a submodule")
        part.target, activation = _place(part, slots.get(part.path), reason, build.report)
        # convert() leaves every converted leaf at training=True, also in an eval model: only the parent knows.
        mode = part.parent.training
        part.target.train(mode)
        part.carrier = activation or part.target
        if activation is not None:
            memo[id(slots[part.path])] = activation.train(mode)
        memo[id(part.source)] = part.target
        build.report.replaced[part.path] = (class_name(part.source), class_name(part.target))
    if unfold_bn:
        _unfold_all(model, rebuilt, unfold_bn, memo, build.report)
    result = _deepcopy(model, memo)
    for part in rebuilt:
        carry_over(part, memo, build.report)
    _refuse_hidden(memo, build.report)
    return result


def _unfold_all(
    model: nn.Module, rebuilt: list[Rebuilt], eps: bool | float, memo: dict[int, Any], report: Report
) -> None:
    """Fill the Identity right behind a layer with a BatchNorm, unless an activation took that place."""
    names = {id(module): path for path, module in model.named_modules()}
    places, _ = find_slots(model, {part.path: 1 for part in rebuilt if id(part.source) in names})
    for part in rebuilt:
        slot = places.get(part.path)
        if slot is None or id(slot) in memo or part.target is None:
            continue
        batch_norm = unfold(part.target, part.path, names[id(slot)], eps, report)
        if batch_norm is not None:
            memo[id(slot)] = batch_norm.train(part.parent.training)
            part.carrier = batch_norm if part.carrier is part.target else part.carrier


def _tensors_with_history(model: nn.Module) -> dict[int, Any]:
    """A memo for tensors that deepcopy refuses: results of autograd that a module keeps as plain attributes."""
    values = (value for module in model.modules() for _, value in plain_values(module))
    tensors = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return {id(tensor): tensor.detach().clone() for tensor in tensors}


def _refuse_hidden(memo: dict[int, Any], report: Report) -> None:
    """Whatever deepcopy found must be float: nothing quantized may hide in an object that qdeq does not enter."""
    if report.unconverted:
        return
    copied = [value for value in memo.values() if is_packed_object(value)]
    copied += [value for value in memo.values() if isinstance(value, nn.Module) and is_quantized_module(value)]
    if copied:
        names = ", ".join(sorted({class_name(value) for value in copied}))
        remedy = "Register these modules as submodules, or keep them in a list, tuple or dict."
        what = "quantized modules that are registered or in plain containers"
        raise QdeqValueError(expected("model", what, f"{names} inside another object", remedy))


def _place(part: Rebuilt, slot: nn.Module | None, reason: str, report: Report) -> tuple[nn.Module, nn.Module | None]:
    item = part.item
    if not isinstance(item, Fused):
        return item, None
    activation = item.activation()
    name = type(activation).__name__
    if slot is None:
        report.note(part.path, f"{name} kept inside {item.holder.__name__}: {reason}")
        return item.hold(), None
    report.note(part.path, f"{name} put back into the Identity that held its place")
    if part.source._forward_hooks:
        report.note(part.path, f"its forward hooks now see the value before the {name}")
    return item.layer, activation


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


def _cast(result: nn.Module, dtype: torch.dtype, device: torch.device | str | None) -> nn.Module:
    convert: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: (  # noqa: E731 (nn.Module._apply takes a function)
        tensor.to(dtype) if tensor.is_floating_point() else tensor
    )
    result = result._apply(convert)  # type: ignore[no-untyped-call]
    return result if device is None else result.to(device)
