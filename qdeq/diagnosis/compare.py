"""``compare``: how far two models are apart, layer by layer, without a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization import FakeQuantizeBase, ObserverBase

from qdeq.diagnosis.measure.data import Batch, batches
from qdeq.diagnosis.measure.running import OutputSums, Sums, first_tensor, forward
from qdeq.diagnosis.measure.watching import own_activation
from qdeq.diagnosis.results import Layer
from qdeq.diagnosis.say.explanation import Comparison
from qdeq.diagnosis.sides.graph import light_copy
from qdeq.errors import QdeqTypeError, expected
from qdeq.grids.modules import Clamp, FakeQuantize
from qdeq.sources.eager.mappings import owned_activation
from qdeq.sources.eager.recognise import is_quantized_module
from qdeq.tree.norms import norms_behind
from qdeq.words import class_name

__all__ = ["compare"]

# What watches or rounds the output of another module.
_POST_PROCESS = (ObserverBase, FakeQuantizeBase, FakeQuantize, Clamp)


def compare(
    a: nn.Module, b: nn.Module, data: Tensor | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any]
) -> Comparison:
    """Run two models on the same data and compare the outputs of every module that both have.

    Any two of float, prepared (QAT), converted and rebuilt models: modules belong together by their path. Each model
    runs on a copy that shares its parameters, so that observers of the original do not move.

    Args:
        a: the model that counts as the signal.
        b: the other one.
        data: as for :func:`qdeq.explain`.

    Raises:
        QdeqTypeError: ``a`` or ``b`` is no module, or ``data`` is of no known kind.
        QdeqValueError: no samples, outputs of different shapes, or a forward that fails (the module is named).

    """
    for where, model in (("a", a), ("b", b)):
        if not isinstance(model, nn.Module):
            raise QdeqTypeError(expected(where, "a torch.nn.Module", class_name(model), "Pass a model that can run."))
    a, b = light_copy(a), light_copy(b)
    ours, theirs = dict(_comparable(a)), dict(_comparable(b))
    paths = [path for path in ours if path in theirs]
    hooks_a, hooks_b = _hooked(a, b, paths), _hooked(b, a, paths)
    after_a = {path: own_activation(theirs[path], ours[path]) for path in paths}
    after_b = {path: own_activation(ours[path], theirs[path]) for path in paths}
    sums = {path: Sums() for path in paths}
    outputs = OutputSums()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for batch in batches(data, a):
            seen: dict[str, list[Tensor]] = {path: [] for path in paths}

            def keep(path: str, value: Tensor, seen: dict[str, list[Tensor]] = seen) -> None:
                seen[path].append(after_a[path](value))

            def judge(path: str, value: Tensor, seen: dict[str, list[Tensor]] = seen) -> None:
                if seen[path] and seen[path][0].shape == value.shape:
                    sums[path].add(seen[path].pop(0), after_b[path](value))

            one = _run(a, hooks_a, "a", batch, keep)
            two = _run(b, hooks_b, "b", batch, judge)
            outputs.add(one, two, batch.labels)
            outputs.check_shapes()
    rows = [
        Layer(path, path, class_name(ours[path]), class_name(theirs[path]), **sums[path].numbers())
        for path in paths
        if sums[path].count
    ]
    unmatched = [path for path in [*ours, *theirs] if path not in sums]
    return Comparison(rows, outputs.outcome(), unmatched)


def _run(
    model: nn.Module, hooks: dict[str, str], where: str, batch: Batch, see: Callable[[str, Tensor], None]
) -> Tensor:
    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, args: Any, output: Any) -> None:
            value = first_tensor(output)
            if value is not None:
                see(path, value)

        return record

    with ExitStack() as stack:
        for path, at in hooks.items():
            stack.enter_context(model.get_submodule(at).register_forward_hook(hook(path)))
        return forward(model, batch, where)


def _hooked(model: nn.Module, other: nn.Module, paths: list[str]) -> dict[str, str]:
    """Path -> the module whose output to compare: the batch norm behind a layer where the other has it folded."""
    norms = norms_behind(model).pairs
    others = dict(other.named_modules())
    folded = {layer for layer, path in norms.items() if type(others.get(path)) in (nn.Identity, type(None))}
    return {path: norms[path] if path in folded else path for path in paths}


def _comparable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the leaf modules, a quantized or QAT layer counting as one; Identity and observers are left out."""
    found: list[tuple[str, nn.Module]] = []
    for path, module in model.named_modules():
        if any(path.startswith(owner + ".") for owner, _ in found):
            continue
        whole = is_quantized_module(module) or isinstance(module, _FusedModule) or hasattr(module, "weight")
        whole = whole or owned_activation(module) is not None
        leaf = next(module.children(), None) is None
        if path and (whole or leaf) and type(module) is not nn.Identity and not isinstance(module, _POST_PROCESS):
            found.append((path, module))
    return found
