"""``dequantize_model``: a converted model in, the float model it stands for out, everything accounted for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import nn

from qdeq.errors import QdeqTypeError, QdeqValueError, expected
from qdeq.grids import check_mode, imitate
from qdeq.layers.batch_norm import check_unfold
from qdeq.report import Report
from qdeq.sources.eager.assemble import assemble
from qdeq.sources.eager.build import Build
from qdeq.sources.eager.carry_over import check_account
from qdeq.sources.eager.recognise import adds_zero_point_first, unsupported_form
from qdeq.sources.eager.walk import rebuild_all
from qdeq.tree.walk import every_module
from qdeq.words import class_name, join

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
    the layer (:class:`qdeq.layers.fused.ConvReLU2d`, same parameter names). Stubs become ``nn.Identity``. Modules
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
    rebuilt = rebuild_all(model, build, strict)
    result = assemble(model, rebuilt, build, unfold_bn)
    check_account(rebuilt, build)
    placed = {part.path: (part.target, part.carrier) for part in rebuilt if part.target and part.carrier}
    first = {part.path for part in rebuilt if adds_zero_point_first(part.source)} if activations == "fake_quant" else ()
    imitate(result, placed, activations, build.report, first)
    result = _finish(result, dtype, device)
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
    for path, module in every_module(model):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.is_meta:
                remedy = "Load its weights before converting it."
                raise QdeqValueError(expected(join(path, name), "a tensor with data", "one on the meta device", remedy))


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
