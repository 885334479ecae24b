"""``dequantize_model``: a converted model in, the float model it stands for out, everything accounted for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, overload

import torch
from torch import nn

from qdeq.account import check_account
from qdeq.errors import QdeqError, QdeqTypeError, QdeqValueError, expected
from qdeq.grids.exact import make_exact
from qdeq.grids.modes import check_mode, imitate
from qdeq.layers.batch_norm import check_unfold
from qdeq.layers.layer import Role
from qdeq.layers.make import Made, make
from qdeq.layers.rounded import rounded
from qdeq.report import Report
from qdeq.sources import form_of
from qdeq.sources.form import Description, Form, Options
from qdeq.tree.walk import every_module, plain_values
from qdeq.tree.wrappers import unwrap
from qdeq.words import class_name, join

__all__ = ["dequantize_model"]


@overload
def dequantize_model(
    model: nn.Module | str | os.PathLike[str],
    *,
    strict: bool = True,
    return_report: Literal[False] = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
    weights: str = "master",
    fold_bn: bool = True,
) -> nn.Module: ...


@overload
def dequantize_model(
    model: nn.Module | str | os.PathLike[str],
    *,
    strict: bool = True,
    return_report: Literal[True],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
    weights: str = "master",
    fold_bn: bool = True,
) -> tuple[nn.Module, Report]: ...


def dequantize_model(
    model: nn.Module | str | os.PathLike[str],
    *,
    strict: bool = True,
    return_report: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    allow_bad_scales: bool = False,
    activations: str = "drop",
    unfold_bn: bool | float = False,
    recover_direct_conv: bool = False,
    weights: str = "master",
    fold_bn: bool = True,
) -> nn.Module | tuple[nn.Module, Report]:
    """Rebuild the float model that a converted (int8) model stands for.

    Every weight equals the ``dequantize()`` of the packed weight bit for bit; every bias is copied. The result is an
    ordinary float model of the same names: a fused ``ConvReLU2d`` followed by the ``Identity`` that held its ReLU
    becomes ``Conv2d`` and ``ReLU`` in those two places. Where no such place can be proven, the activation stays in
    the layer (:class:`qdeq.layers.fused.ConvReLU2d`, same parameter names). Stubs become ``nn.Identity``. Modules
    used in two places stay shared.

    The result shares no memory with ``model``, which is left untouched. Rebuilt parameters are contiguous with
    ``requires_grad=True``; parameters of float modules keep their flag. Rebuilt modules take the training mode of
    the module around them, float modules keep theirs.

    Args:
        model: eager-mode model after ``torch.ao.quantization.convert``, on the CPU; TorchScript of a quantized model,
            scripted, traced or frozen, or the file that ``torch.jit.save`` wrote; or one after ``prepare``,
            ``prepare_qat``, ``prepare_fx`` or ``prepare_qat_fx``, which comes back without observers. It is not run,
            and a file is not loaded by torch: no code in it runs.
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
            quantized tensors, so that the float model computes what the int8 one does; ``"exact"`` does so with the
            integer sums of fbgemm's layers, bit for bit, and names every other operation that may give the step
            beside. Parameter names stay the same; ``scale`` and ``zero_point`` become buffers.
            :func:`qdeq.drop_activations` takes them out again.
        unfold_bn: put BatchNorm layers back into the places that fusing emptied, as exact identities in float32:
            True for any eps up to 2**-9, or the eps they will run with. A layer that had a bias before fusing keeps the
            folded one; otherwise it becomes the BatchNorm's. Where no such place can be proven the report says so; then
            ``dequantize_state_dict(model.state_dict(), into=, norms=)`` loads the class.
        recover_direct_conv: you state that ``model`` was converted in this process and never copied, saved or
            loaded. fbgemm's direct transposed convolution (``ConvTranspose2d``, kernel (2, 1..6), stride 1 or 2, no
            padding, channels divisible by 8, groups 1) is then read by running it. torch hands out uninitialized
            memory for such a weight, a copy was packed from that and cannot be told from the original, so by default
            these modules are refused.
        weights: of a prepared or QAT model, which has no integers yet: ``"master"``, the float weights that were
            trained, or ``"rounded"`` to the grid of their fake quantization, with which the model was evaluated.
        fold_bn: of a prepared or QAT model: fold each batch norm into its layer, as ``convert`` does; with False it is
            put back into the place that fusing emptied, or stays as ``<layer>.bn``.

    Returns:
        The float model, or ``(float model, report)``.

    Raises:
        QdeqTypeError: ``model`` is no module and no path, or ``dtype`` is not a floating-point dtype.
        QdeqValueError: the model holds nothing quantized, comes in a form that cannot be read, holds quantized
            modules that are not known (all are named), or a weight cannot be read; ``activations="exact"`` with
            another ``dtype`` than float32, or with ``unfold_bn``. Nothing is half done.

    """
    form = _form_of(model)
    _check_options(dtype, device, weights)
    check_unfold(unfold_bn, dtype)
    check_mode(activations, dtype, unfold_bn)
    options, report = Options(unfold_bn, recover_direct_conv, weights, fold_bn, activations), Report()
    with _named(form):
        description = form.describe(model, options, report)
        made, failures = make(
            description.layers, report, dtype=dtype, allow_bad_scales=allow_bad_scales, detailed=return_report
        )
        _check_complete(description, failures, strict)
        report.unconverted.extend(description.unknown)
        result = form.rebuild(model, made, options, report)
    _check_account(made, report)
    imitate(result, [rounded(part) for part in made if not part.placed], activations, report)
    if activations == "exact":
        make_exact(result, [rounded(part) for part in made], report)
    if activations == "drop":  # else a wrapper's stubs carry the rounding of what goes in
        for before, after in unwrap(result):
            report.move(before, after)
            report.note(after, "out of the wrapper that add_quant_dequant put around it")
    result = _finish(result, dtype, device)
    if not return_report:
        return result
    _note_optimizers(result, report)
    return result, report


def _form_of(model: object) -> Form:
    form = form_of(model)
    if form is None:
        remedy = "For a state_dict use dequantize_state_dict, for a tensor dequantize."
        raise QdeqTypeError(expected("model", "a torch.nn.Module", class_name(model), remedy))
    return form


def _check_options(dtype: object, device: object, weights: object) -> None:
    if weights not in ("master", "rounded"):
        remedy = "The master weights are those that were trained; convert() would round them again."
        raise QdeqValueError(expected("weights", '"master" or "rounded"', repr(weights), remedy))
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise QdeqTypeError(expected("dtype", "a floating-point torch.dtype", str(dtype), "Pass torch.float32."))
    if device is not None:
        try:
            torch.empty(0, device=device)  # type: ignore[call-overload] # whatever the caller passed
        except (RuntimeError, TypeError, AssertionError) as error:
            remedy = 'Pass "cpu", the name of a device that this torch can use, or nothing for the CPU.'
            raise QdeqValueError(expected("device", "a device of this torch", repr(device), remedy)) from error


@contextmanager
def _named(form: Form) -> Iterator[None]:
    """A form that recognised a model and then fails is named in the error."""
    try:
        yield
    except QdeqError:
        raise
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        remedy = "The model was recognised as this form; convert it again, or report what it holds."
        raise QdeqValueError(expected("model", f"{form.name} that can be read", got, remedy)) from error


def _check_complete(description: Description, failures: list[QdeqError], strict: bool) -> None:
    """Collect everything that cannot be rebuilt into one error."""
    failures = [*description.failures.values(), *failures]
    if description.unknown and strict:
        names = "; ".join(f"{item.path or 'the model itself'} is {item.module_class}" for item in description.unknown)
        remedy = "Teach it with qdeq.register, or pass strict=False to keep them quantized."
        failures.append(QdeqValueError(expected("model", "only quantized modules that qdeq knows", names, remedy)))
    found = (
        description.certain
        or description.unknown
        or failures
        or any(layer.role is not Role.STUB for layer in description.layers)
    )
    if not found and strict:
        remedy = "It is a float model already; pass strict=False for a copy."
        raise QdeqValueError(expected("model", "at least one quantized module", "none", remedy))
    if len(failures) == 1:
        raise failures[0]
    if failures:
        lines = "".join(f"\n- {failure}" for failure in failures)
        raise QdeqValueError(f"model: expected modules that can be rebuilt, got {len(failures)} problems.{lines}")


def _check_account(made: list[Made], report: Report) -> None:
    written = {entry.target for entry in report.entries}
    unused = [
        name
        for part in made
        for accounted in [part.layer.accounted()]
        for name in part.layer.holds
        if name not in accounted
    ]
    unwritten = [
        name for part in made for name, parameter in part.named_parameters() if parameter.is_meta or name not in written
    ]
    check_account(unused, unwritten)


def _note_optimizers(result: nn.Module, report: Report) -> None:
    """An optimizer that the model keeps as an attribute was made for parameters that quantizing took away."""
    own = {id(parameter) for parameter in result.parameters()}
    for path, module in every_module(result):
        for name, value in plain_values(module):
            if isinstance(value, torch.optim.Optimizer):
                held = [id(parameter) for group in value.param_groups for parameter in group["params"]]
                stale = len(held) - len(own.intersection(held))
                if stale:
                    what = f"the optimizer holds {stale} of {len(held)} tensors that are no parameters of this model"
                    report.note(join(path, name), f"{what}: make a new one to train it")


def _finish(result: nn.Module, dtype: torch.dtype, device: torch.device | str | None) -> nn.Module:
    """Parameters contiguous, floating-point tensors of ``dtype``, all on ``device``."""
    cast = False
    for _, module in every_module(result):
        for parameter in module._parameters.values():
            if parameter is not None:
                cast |= parameter.is_floating_point() and parameter.dtype != dtype
                if not parameter.is_contiguous():
                    parameter.data = parameter.data.contiguous()
        for buffer in module._buffers.values():
            cast |= buffer is not None and buffer.is_floating_point() and buffer.dtype != dtype
    if cast:
        convert: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: (  # noqa: E731 (_apply takes a function)
            tensor.to(dtype) if tensor.is_floating_point() else tensor
        )
        result._apply(convert)  # type: ignore[no-untyped-call]
    return result if device is None else result.to(device)
