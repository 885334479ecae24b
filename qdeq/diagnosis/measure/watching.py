"""Runs both models side by side and watches every quantized module and its counterpart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from qdeq.diagnosis.measure.data import Batch
from qdeq.diagnosis.measure.grid_use import GridUse
from qdeq.diagnosis.measure.running import OutputSums, Sums, as_float, first_tensor, forward, squared_error
from qdeq.diagnosis.measure.saturation import Saturation, measure_saturation
from qdeq.diagnosis.sides.graph import light_copy
from qdeq.diagnosis.sides.pairs import Pair
from qdeq.sources.eager.mappings import owned_activation
from qdeq.sources.eager.recognise import holds_quantized_state, is_quantized_module

__all__ = ["RESULT", "Answer", "Watch", "own_activation", "run_side_by_side"]

# A functional calls this child with its result; it has no forward of its own.
RESULT = "activation_post_process"


@dataclass(eq=False)
class Watch:
    """What is kept about a quantized module and its counterpart while both models run."""

    path: str  # in the int8 model
    partner: str  # in the float model; empty where it has none
    pair: Pair | None = None  # the layers, where both are one
    is_stub: bool = False  # whether it quantizes the values of a float
    rounds: bool = True  # whether it has a grid of its own; otherwise it gives values on that of its input
    holds_weights: bool = True  # whether what it does depends on what it holds
    place: int = -1  # in the order in which the int8 model runs its modules; -1 for one that it does not run
    total: Sums = field(default_factory=Sums)  # over the outputs of both
    inputs: Sums = field(default_factory=Sums)  # over the inputs of both layers
    own: float = 0.0  # sum of squared differences between the float layer on the int8 layer's input and the int8 layer
    before: float = 0.0  # sum of squared differences between the float layer on its own input and on the int8 layer's
    split_signal: float = 0.0  # sum of the int8 layer's squares where ``own`` and ``before`` were measured
    grid: GridUse | None = None  # of the int8 output; None where it is a float
    outside: int = 0  # values of the float layer that are half a step or more outside of what the grid represents
    low: float = float("inf")  # smallest value of the float layer
    high: float = float("-inf")  # largest value of the float layer
    # Arguments and output of the int8 layer in this batch, quantized as they are.
    calls: list[tuple[tuple[Any, ...], Tensor]] = field(default_factory=list)
    next_call: int = 0  # which of them the float layer answers next
    saturation: Saturation | None = None  # of the first batch


@dataclass(frozen=True)
class Answer:
    """A batch and what both models made of it, float32."""

    batch: Batch
    ours: Tensor
    theirs: Tensor

    def first(self, count: int) -> Answer:
        """The first ``count`` samples; all of them where the batch cannot be cut."""
        if not self.batch.can_be_cut:
            return self
        return Answer(self.batch.part(0, count), self.ours[:count], self.theirs[:count])


def run_side_by_side(
    int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair], data: Iterable[Batch], keep: int
) -> tuple[list[Watch], OutputSums, list[Answer]]:
    """Run both models once on all data, and in every second batch each float layer once more on the int8 one's input.

    Both are run as copies that share their parameters. The layers of ``pairs``, each a module of its own, are watched,
    and all other quantized modules; the watches come in the order in which the int8 model runs them. The answers to
    the first ``keep`` samples are returned.
    """
    int8_model, float_model = light_copy(int8_model), light_copy(float_model)
    watches = list(_watches(int8_model, float_model, pairs))
    outputs, answers = OutputSums(), list[Answer]()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for number, batch in enumerate(data):
            answer = _run_batch(int8_model, float_model, watches, batch, split=number % 2 == 0)
            outputs.add(answer.ours, answer.theirs, batch.labels)
            if sum(len(item.batch) for item in answers) < keep:
                answers.append(answer)
    return sorted((watch for watch in watches if watch.place >= 0), key=lambda watch: watch.place), outputs, answers


def _watches(int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair]) -> Iterator[Watch]:
    layers = {pair.layer.path: pair for pair in pairs}
    theirs = dict(float_model.named_modules())
    for path, module in int8_model.named_modules():
        if path in layers:
            partner = layers[path].partner.path
            yield Watch(path, partner if partner in theirs else "", layers[path])
        elif is_quantized_module(module):
            rounds = hasattr(module, "scale") or hasattr(module, "output_scale")
            weights = holds_quantized_state(module) or next(module.parameters(), None) is not None
            yield Watch(path, path if path in theirs else "", None, type(module) is nnq.Quantize, rounds, weights)


def _gives_output(model: nn.Module, path: str) -> nn.Module:
    """The module whose calls give the output of the one at ``path``."""
    module = model.get_submodule(path)
    is_functional = type(module) in (nnq.QFunctional, nnq.FloatFunctional)
    return module.get_submodule(RESULT) if is_functional else module


def _run_batch(
    int8_model: nn.Module, float_model: nn.Module, watches: list[Watch], batch: Batch, *, split: bool
) -> Answer:
    order = list[Watch]()
    with ExitStack() as hooks:
        for watch in watches:
            module = _gives_output(int8_model, watch.path)
            hooks.enter_context(module.register_forward_hook(_keep(watch, order, split=split)))
        ours = forward(int8_model, batch, "int8_model")
    with ExitStack() as hooks:
        for watch in watches:
            if watch.pair is not None and split:
                layer = float_model.get_submodule(watch.partner)
                hooks.enter_context(layer.register_forward_pre_hook(_compare_inputs(watch)))
            if watch.partner:
                hooks.enter_context(_judge(watch, float_model, int8_model, split=split))
        theirs = forward(float_model, batch, "float_model")
    for place, watch in enumerate(order):
        watch.place = place if watch.place < 0 else watch.place
        watch.calls.clear()
        watch.next_call = 0
    return Answer(batch, ours, theirs)


def _main(output: Any) -> Tensor | None:
    """The output of a layer: the first one where it gives several."""
    while isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _keep(watch: Watch, order: list[Watch], *, split: bool) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        value = _main(output)
        if value is None:
            return
        if not watch.calls:
            order.append(watch)
        if watch.pair is not None and watch.saturation is None and args and isinstance(args[0], Tensor):
            watch.saturation = measure_saturation(module, args[0], watch.pair.layer)
        if watch.grid is None and watch.rounds:
            watch.grid = GridUse.of(value)
        if split and watch.grid is not None and value.is_quantized:
            watch.grid.count(value)
            if watch.is_stub:
                watch.grid.measure(args[0].float())
        # Copies: an activation that works in place may follow. Quantized ones are a quarter of the floats.
        needed = args if watch.pair is not None else ()
        watch.calls.append(
            (tuple(item.clone() if isinstance(item, Tensor) else item for item in needed), value.clone())
        )

    return hook


def _compare_inputs(watch: Watch) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, args: Any) -> None:
        if watch.next_call >= len(watch.calls):
            return
        kept, _ = watch.calls[watch.next_call]
        ours, theirs = (as_float(values[0]) if values else None for values in (kept, args))
        if ours is not None and theirs is not None and ours.shape == theirs.shape:
            watch.inputs.add(ours, theirs)

    return hook


def _judge(watch: Watch, float_model: nn.Module, int8_model: nn.Module, *, split: bool) -> Any:
    layer, pair = _gives_output(float_model, watch.partner), watch.pair
    norm = float_model.get_submodule(pair.norm) if pair is not None and pair.norm and pair.use_folded else None
    after = own_activation(int8_model.get_submodule(watch.path), layer)

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        value = first_tensor(output)
        if value is None or watch.next_call >= len(watch.calls):
            return
        args_kept, kept = watch.calls[watch.next_call]
        watch.calls[watch.next_call] = ((), output)  # what is kept is needed once
        watch.next_call += 1
        ours = as_float(kept)
        value = after(value)
        if ours is None or value.shape != ours.shape:
            return
        _count_range(watch, value)
        signal = watch.total.aa
        watch.total.add(ours, value)
        if not split:
            return
        if watch.grid is not None and not watch.is_stub:
            watch.grid.measure(value)
        if pair is None:
            return
        local = layer.forward(*(_dequantized(item) for item in args_kept))
        local = after(norm.forward(local) if norm is not None else local)
        watch.split_signal += watch.total.aa - signal
        watch.own += squared_error(ours, local)
        watch.before += squared_error(local, value)

    return (norm or layer).register_forward_hook(hook)


def _dequantized(value: Any) -> Any:
    return value.dequantize() if isinstance(value, Tensor) and value.is_quantized else value


def own_activation(quantized: nn.Module, layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what the int8 layer applies itself and the float layer leaves to the module behind it."""
    kind = owned_activation(quantized)
    if kind is None or owned_activation(layer) is not None:
        return lambda value: value
    return nn.LeakyReLU(float(getattr(quantized, "negative_slope", 0.01))) if kind is nn.LeakyReLU else kind()


def _count_range(watch: Watch, value: Tensor) -> None:
    if value.numel() == 0:
        return
    low, high = torch.aminmax(value)
    watch.low, watch.high = min(watch.low, float(low)), max(watch.high, float(high))
    if watch.grid is not None:
        half = watch.grid.scale / 2
        first, last = watch.grid.limits[0] - half, watch.grid.limits[1] + half
        if float(low) < first or float(high) > last:
            watch.outside += int(((value < first) | (value > last)).sum())
