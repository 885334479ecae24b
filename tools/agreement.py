"""Runs a rebuilt ``fake_quant`` model with every rounded value replaced by the int8 model's, and compares each first.

So every layer sees the int8 model's own dequantized input, and one layer's flip does not spread to the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qdeq.grids import FakeQuantize


@dataclass
class Agreement:
    """How many elements of one rounded value have the bits of the int8 model's; the largest difference in steps."""

    equal: int
    total: int
    max_steps: float

    @property
    def share(self) -> float:
        """Equal ones among all."""
        return self.equal / self.total


class _Functions(TorchFunctionMode):
    """Keeps the quantized results of functions that round, in the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Tensor] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("avg_pool2d", "adaptive_avg_pool2d", "mean") and result.is_quantized:
            self.results.append(result)
        return result


def layer_agreement(int8: nn.Module, rebuilt: nn.Module, x: Tensor) -> dict[str, Agreement]:
    """Per rounded value of ``rebuilt``: how many elements equal the int8 model's, for that model's own inputs."""
    outputs: dict[str, Tensor] = {}
    functions = _Functions()

    def keep(path: str):
        def hook(module, args, output):
            if isinstance(output, Tensor) and output.is_quantized:
                outputs[path] = output.dequantize()
                if functions.results and output is functions.results[-1] and not list(module.children()):
                    functions.results.pop()  # an nn.AvgPool2d calls the function: it is compared as a module

        return hook

    handles = [module.register_forward_hook(keep(path)) for path, module in int8.named_modules() if path]
    with torch.no_grad(), functions:
        int8(x)
    for handle in handles:
        handle.remove()
    result: dict[str, Agreement] = {}

    def force(path: str):
        def hook(module, args, output):
            parent, _, name = path.rpartition(".")
            if name == "activation_post_process":
                # A FloatFunctional calls its child itself; elsewhere the child belongs to the module around it.
                expected = outputs[path if path in outputs else parent]
            else:
                expected = functions.results.pop(0).dequantize()
            steps = ((output - expected) / module.scale).abs().max()
            same = int((output.contiguous().view(torch.int32) == expected.contiguous().view(torch.int32)).sum())
            result[path] = Agreement(same, output.numel(), float(steps))
            return expected

        return hook

    handles = [
        module.register_forward_hook(force(path))
        for path, module in rebuilt.named_modules()
        if isinstance(module, FakeQuantize)
    ]
    with torch.no_grad():
        rebuilt(x)
    for handle in handles:
        handle.remove()
    assert not functions.results, f"{len(functions.results)} results of functions have no counterpart"
    return result
