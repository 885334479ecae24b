"""Outputs whose scale is the one that an observer gives without having seen a value: seen without data."""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import nn

from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.integers import Int8Side, IntegerLayer
from qdeq.tree.tracing import Traces

__all__ = ["is_default", "uncalibrated_findings", "uncalibrated_outputs"]

# The least scale of torch's observers: what they give when all that they saw was zero.
LEAST_SCALE = float(torch.finfo(torch.float32).eps)
_NEVER = "its output was never calibrated: scale 1, zero point 0 are what an observer gives that saw no value"


def is_default(scale: float, zero_point: int) -> bool:
    """Whether an output has the scale and zero point of an observer that saw nothing."""
    return scale == 1.0 and zero_point == 0


def uncalibrated_findings(int8_model: nn.Module, layers: list[IntegerLayer]) -> list[Finding]:
    """Name every module with such an output, once a layer with weights has one.

    A stub's or a functional's scale of 1 alone proves nothing: images of 0 to 255 have it, and so has a functional
    that nothing calls. Layers that the forward provably does not call are left out; where it cannot be traced, half of
    the layers have to be without calibration.
    """
    outputs = {layer.path: layer.output for layer in layers if layer.output is not None}
    called = _called(int8_model)
    bare = [path for path, output in outputs.items() if is_default(*output) and (called is None or path in called)]
    others = _outputs_of_others(int8_model)
    zeros = [path for path, (scale, _, is_stub) in others.items() if is_stub and scale <= LEAST_SCALE * 1.001]
    found = [_finding(path, "it was calibrated on nothing but zeros", others[path][0], 0) for path in zeros]
    if not bare or (called is None and 2 * len(bare) < len(outputs)):
        return found
    for path, (scale, zero_point, is_stub) in others.items():
        runs = is_stub if called is None else path in called
        if is_default(scale, zero_point) and runs:
            bare.append(path)
    return found + [_finding(path, _NEVER, 1.0, 0) for path in bare]


def uncalibrated_outputs(held: Int8Side) -> list[Finding]:
    """The same of a state_dict or file, which says less: dynamic layers have these numbers, too.

    So every stub and functional has to have them, of which there must be one, and half of the layers.
    """
    layers = {layer.path for layer in held.layers}
    ours = {path: output for path, output in held.outputs.items() if path in layers}
    others = {path: output for path, output in held.outputs.items() if path not in layers}
    bare = [path for path, output in ours.items() if is_default(*output)]
    if not others or not all(is_default(*output) for output in others.values()) or 2 * len(bare) < len(ours):
        return []
    return [_finding(path, _NEVER, 1.0, 0) for path in [*bare, *others]] if bare else []


def _finding(path: str, text: str, scale: float, zero_point: int) -> Finding:
    return make_finding(path, "never_calibrated", f"{path}: {text}", {"scale": scale, "zero_point": zero_point})


def _outputs_of_others(model: nn.Module) -> dict[str, tuple[float, int, bool]]:
    """Path of a stub or functional -> its scale, zero point, and whether it is a stub."""
    found = {}
    for path, module in model.named_modules():
        known: Any = module
        if type(module) in (nnq.Quantize, nnq.QFunctional):
            found[path] = float(known.scale), int(known.zero_point), type(module) is nnq.Quantize
    return found


def _called(model: nn.Module) -> set[str] | None:
    """Paths of the modules that the forward calls; None where it cannot be traced."""
    graph = Traces(model).whole
    if graph is None:
        return None
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    return called | {path.rpartition(".")[0] for path in called}  # a functional calls its child
