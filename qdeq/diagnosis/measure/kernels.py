"""Layers whose int8 output is not what their own integers say: kernels of torch that are wrong.

Which ones may be is known (transposed convolutions of onednn, clamping of channels_last tensors in qnnpack, fbgemm's
direct transposed convolution once it was copied); whether one is, here and on this data, is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn
from torch.nn import functional as F

from qdeq.diagnosis.measure.data import Batch
from qdeq.diagnosis.measure.running import Sums, forward
from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.graph import light_copy
from qdeq.diagnosis.sides.pairs import Pair
from qdeq.sources.eager.mappings import float_class

__all__ = ["kernel_findings"]

# What a right kernel's output may differ by, in steps of its scale: rounding, and the rounding of a multiplier.
MOST_STEPS = 1.5
# A kernel is wrong where this share of its outputs is, and the noise is a hundredth of the signal's power or more. An
# exact layer is not known for weights that cannot be read: the float model's is within a tenth.
WRONG_SHARE, NOISE, NOISE_UNREAD = 0.05, 0.01, 0.1
_TRANSPOSED = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}

Exact: TypeAlias = Callable[[Tensor], Tensor]


def kernel_findings(
    int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair], unread: Mapping[str, str], batch: Batch
) -> list[Finding]:
    """Run the int8 model once on a batch, where it has a suspect, and compare each suspect with its exact result.

    Args:
        int8_model: is left as it was.
        float_model: gives the layers whose int8 weights cannot be read.
        pairs: the layers that can be.
        unread: paths of the others.
        batch: what both models take.

    """
    suspects = {path: (exact, most) for path, exact, most in _suspects(int8_model, float_model, pairs, unread)}
    found: dict[str, Finding] = {}
    if not suspects:
        return []
    shares = {pair.layer.path: pair.layer.numel / pair.total for pair in pairs}
    model = light_copy(int8_model)
    inputs: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                inputs[path] = args[0].dequantize() if args[0].is_quantized else args[0].clone()

        return hook

    def judge(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            exact, most = suspects[path]
            if path not in inputs or path in found or not isinstance(output, Tensor):
                return
            item = _compare(path, module, exact(inputs.pop(path)), output, most, shares.get(path, 0.0))
            if item is not None:
                found[path] = item

        return hook

    with ExitStack() as hooks, torch.no_grad(), torch.random.fork_rng(devices=[]):
        for path in suspects:
            hooks.enter_context(model.get_submodule(path).register_forward_pre_hook(keep(path)))
            hooks.enter_context(model.get_submodule(path).register_forward_hook(judge(path)))
        forward(model, batch, "int8_model")
    return list(found.values())


def _suspects(
    int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair], unread: Mapping[str, str]
) -> Iterator[tuple[str, Exact, float]]:
    layers, theirs = {pair.layer.path: pair for pair in pairs}, dict(float_model.named_modules())
    for path, module in int8_model.named_modules():
        kind = float_class(type(module))
        if kind in _TRANSPOSED and path in layers:
            yield path, _transposed(module, layers[path], _TRANSPOSED[kind]), NOISE
        elif path in unread and path in theirs:
            yield path, theirs[path].forward, NOISE_UNREAD
        elif type(module) is nnq.ReLU6:
            yield path, nn.ReLU6().forward, NOISE
        elif type(module) in (nn.ReLU6, nn.Hardtanh):
            yield path, nn.Hardtanh(module.min_val, module.max_val).forward, NOISE


def _transposed(module: Any, pair: Pair, run: Callable[..., Tensor]) -> Exact:
    weight, bias = pair.layer.ints.reference(), pair.layer.bias
    sizes = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    return lambda x: run(x, weight, bias, *sizes)


def _compare(path: str, module: nn.Module, exact: Tensor, output: Tensor, most: float, share: float) -> Finding | None:
    actual = output.dequantize() if output.is_quantized else output
    if exact.shape != actual.shape or not exact.numel():
        return None
    step = 0.0
    if output.is_quantized:
        step, zero_point = output.q_scale(), output.q_zero_point()
        exact = torch.quantize_per_tensor(exact.contiguous(), step, zero_point, output.dtype).dequantize()
    sums = Sums()
    sums.add(exact, actual)
    wrong = float(((actual - exact).abs() > MOST_STEPS * step).double().mean())
    if wrong <= WRONG_SHARE or sums.error <= most * sums.aa:
        return None
    right = "its own integers" if most == NOISE else "the float layer"
    text = f"{path}: torch's int8 kernel of {type(module).__name__} does not give what {right} would give:"
    text += f" {100 * wrong:.0f} % of its outputs are off, by up to {sums.largest:.3g}; the float model is right"
    evidence = {"wrong_share": wrong, "largest": sums.largest, "noise": sums.error / max(sums.aa, 1e-30)}
    return make_finding(path, "int8_kernel_wrong", text, evidence, share)
