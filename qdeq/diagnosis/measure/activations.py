"""Runs both models side by side and fills the table of layers; finds clipping and saturation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qdeq.diagnosis.findings.weights import finding
from qdeq.diagnosis.measure.running import Batch, OutputSums, Sums, as_float, forward, squared_error
from qdeq.diagnosis.measure.saturation import Saturation, measure_saturation
from qdeq.diagnosis.results import Finding, Layer
from qdeq.diagnosis.sides.graph import light_copy
from qdeq.diagnosis.sides.pairs import Pair
from qdeq.grids.grid import RANGES
from qdeq.sources.eager.mappings import owned_activation
from qdeq.words import dtype_name

__all__ = ["Answer", "Watch", "fill_table", "own_activation", "run_side_by_side", "runtime_findings"]

# Clipping is worth a line when this share of a layer's values is outside what int8 represents.
CLIPPED_SHARE = 1e-3
# The outputs part where the noise is a tenth of the signal's power.
DIVERGED_DB = 10.0


@dataclass
class Watch:
    """What is kept about one pair of layers while both models run."""

    pair: Pair  # the layers
    total: Sums = field(default_factory=Sums)  # over the outputs of both
    own: float = 0.0  # sum of squared differences between the float layer on the int8 layer's input and the int8 layer
    before: float = 0.0  # sum of squared differences between the float layer on its own input and on the int8 layer's
    split_signal: float = 0.0  # sum of the int8 layer's squares where ``own`` and ``before`` were measured
    # Smallest and largest value that the int8 layer's output can represent; None where it is a float.
    limits: tuple[float, float] | None = None
    outside: int = 0  # values of the float layer that are half a step or more outside of ``limits``
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


def run_side_by_side(
    int8_model: nn.Module, float_model: nn.Module, pairs: list[Pair], data: Iterable[Batch], keep: int
) -> tuple[list[Watch], OutputSums, list[Answer]]:
    """Run both models once on all data, and in every second batch each float layer once more on the int8 one's input.

    Both are run as copies that share their parameters. The layers of ``pairs`` are watched, each a module of its own;
    the answers to the first ``keep`` samples are returned.
    """
    watches = [Watch(pair) for pair in pairs]
    outputs = OutputSums()
    answers: list[Answer] = []
    int8_model, float_model = light_copy(int8_model), light_copy(float_model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for number, batch in enumerate(data):
            answer = _run_batch(int8_model, float_model, watches, batch, split=number % 2 == 0)
            outputs.add(answer.ours, answer.theirs, batch.labels)
            if sum(len(item.batch) for item in answers) < keep:
                answers.append(answer)
    return watches, outputs, answers


def _run_batch(
    int8_model: nn.Module, float_model: nn.Module, watches: list[Watch], batch: Batch, *, split: bool
) -> Answer:
    with ExitStack() as hooks:
        for watch in watches:
            hooks.enter_context(int8_model.get_submodule(watch.pair.layer.path).register_forward_hook(_keep(watch)))
        ours = forward(int8_model, batch.inputs, "int8_model")
    with ExitStack() as hooks:
        for watch in watches:
            hooks.enter_context(_judge(watch, float_model, int8_model, split=split))
        theirs = forward(float_model, batch.inputs, "float_model")
    for watch in watches:
        watch.calls.clear()
        watch.next_call = 0
    return Answer(batch, ours, theirs)


def _keep(watch: Watch) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        if watch.saturation is None and args and isinstance(args[0], Tensor):
            watch.saturation = measure_saturation(module, args[0], watch.pair.layer)
        watch.limits = representable(output)
        # Copies: an activation that works in place may follow. Quantized ones are a quarter of the floats.
        watch.calls.append((tuple(item.clone() if isinstance(item, Tensor) else item for item in args), output.clone()))

    return hook


def _judge(watch: Watch, float_model: nn.Module, int8_model: nn.Module, *, split: bool) -> Any:
    layer = float_model.get_submodule(watch.pair.partner.path)
    norm = float_model.get_submodule(watch.pair.norm) if watch.pair.norm and watch.pair.use_folded else None
    after = own_activation(int8_model.get_submodule(watch.pair.layer.path), layer)

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        value = as_float(output)
        if value is None or watch.next_call >= len(watch.calls):
            return
        args_kept, kept = watch.calls[watch.next_call]
        watch.calls[watch.next_call] = ((), output)  # what is kept is needed once
        watch.next_call += 1
        ours = as_float(kept)
        value = after(value)
        if ours is None or value.shape != ours.shape:
            return
        _count_range(watch, value, kept)
        signal = watch.total.aa
        watch.total.add(ours, value)
        if not split:
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


def representable(output: Tensor) -> tuple[float, float] | None:
    """Smallest and largest value that a layer's output can represent, by its own dtype; None where it is a float."""
    if not output.is_quantized:
        return None
    low, high = RANGES[dtype_name(output.dtype)]
    return output.q_scale() * (low - output.q_zero_point()), output.q_scale() * (high - output.q_zero_point())


def _count_range(watch: Watch, value: Tensor, ours: Tensor) -> None:
    if value.numel() == 0:
        return
    low, high = torch.aminmax(value)
    watch.low, watch.high = min(watch.low, float(low)), max(watch.high, float(high))
    if watch.limits is not None:
        half = ours.q_scale() / 2
        first, last = watch.limits[0] - half, watch.limits[1] + half
        if float(low) < first or float(high) > last:
            watch.outside += int(((value < first) | (value > last)).sum())


def _relative(error: float, signal: float) -> float:
    return (error / signal) ** 0.5 if signal > 0 else float(error > 0)


def fill_table(watches: list[Watch], table: dict[str, Layer]) -> str | None:
    """Write the numbers into the rows; the first layer where the outputs part, if any."""
    first = None
    for watch in watches:
        if watch.total.count == 0:
            continue
        row = table[watch.pair.layer.path]
        total = watch.total
        for name, number in total.numbers().items():
            setattr(row, name, number)
        row.introduced = _relative(watch.own, watch.split_signal)
        row.inherited = _relative(watch.before, watch.split_signal)
        row.clipped = watch.outside / total.count
        row.low, row.high = watch.low, watch.high
        if watch.limits is not None:
            row.low_representable, row.high_representable = watch.limits
        if first is None and row.sqnr_db is not None and row.sqnr_db < DIVERGED_DB:
            first = row.module
    return first


def runtime_findings(watches: list[Watch]) -> list[Finding]:
    """Clipping and saturation."""
    found = []
    for watch in watches:
        clipped, limits = watch.outside / max(1, watch.total.count), watch.limits
        if clipped > CLIPPED_SHARE and limits is not None:
            text = f"{100 * clipped:.2g} % of the float values are outside {limits[0]:.3g} .. {limits[1]:.3g}, which is"
            evidence = {"clipped_share": clipped, "low": watch.low, "high": watch.high}
            found.append(finding(watch.pair, "clipping", f"{text} what int8 represents", evidence))
        if watch.saturation is not None and watch.saturation.matters:
            found.append(finding(watch.pair, "saturation", watch.saturation.sentence(), asdict(watch.saturation)))
    return found
