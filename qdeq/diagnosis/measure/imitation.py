"""Gives the float model what the int8 model has: one output rounded to its grid, or one layer's rounded weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.ao.nn.quantized as nnq
from torch import Tensor, nn

from qdeq.diagnosis.measure.grid_use import GridUse
from qdeq.diagnosis.measure.repair import Repair, Repairs
from qdeq.diagnosis.measure.watching import RESULT, Watch
from qdeq.diagnosis.results import Finding, make_finding
from qdeq.diagnosis.sides.graph import activations_behind
from qdeq.sources.eager.mappings import owned_activation
from qdeq.tree.tracing import Traces

__all__ = ["IMITATED", "Imitations"]

# Faults of the int8 model: the float model is given them, and the difference that goes away is what they cause.
IMITATED = frozenset({"never_calibrated", "input_range", "calibrated_wide", "calibrated_narrow", "levels_collapsed"})


class Imitations:
    """What gives a copy of the float model a fault of the int8 model; of any other finding, its repair."""

    def __init__(
        self,
        repairs: Repairs,
        int8_model: nn.Module,
        float_model: nn.Module,
        watches: Iterable[Watch],
    ) -> None:
        self._repairs, self._int8_model, self._float_model = repairs, int8_model, float_model
        self._watches = {watch.path: watch for watch in watches}
        self._places: dict[str, str | None] = {}

    def of(self, item: Finding) -> Repair | None:
        """Return what to do to a copy of the float model for a finding; None where nothing can be done."""
        if item.kind not in IMITATED:
            return self._repairs.of(item)
        if item.kind == "levels_collapsed":
            return self.weights(item.module)
        paths = item.evidence.get("modules", [item.module])
        return _all([change for path in paths if (change := self.rounding(path)) is not None])

    def weights(self, path: str) -> Repair | None:
        """Put the int8 weights of the layer at ``path`` in, as floats: that is how a wrong weight is put right."""
        return self._repairs.of(make_finding(path, "weight_altered", "", {"source": path}))

    def rounding(self, path: str) -> Repair | None:
        """Round the output of the module at ``path`` of the int8 model to its grid."""
        watch = self._watches.get(path)
        if watch is None or watch.grid is None or (place := self._place(watch)) is None:
            return None
        grid = watch.grid
        return lambda model: model.get_submodule(place).register_forward_hook(lambda m, args, out: _rounded(out, grid))

    def _place(self, watch: Watch) -> str | None:
        """Path of the float module whose output stands for the int8 module's; None where there is none."""
        if watch.path not in self._places:
            self._places[watch.path] = self._find_place(watch) if watch.partner else None
        return self._places[watch.path]

    def _find_place(self, watch: Watch) -> str | None:
        module, pair = self._float_model.get_submodule(watch.partner), watch.pair
        if type(module) in (nnq.QFunctional, nnq.FloatFunctional):
            return f"{watch.partner}.{RESULT}"
        own = owned_activation(self._int8_model.get_submodule(watch.path))
        if own not in (None, nn.ReLU) and owned_activation(module) is None:
            # The grid is that behind the activation, which the float model applies elsewhere; a ReLU may come twice.
            graph = Traces(self._float_model).whole
            behind = graph and activations_behind(graph, self._float_model, watch.partner)
            return behind[0].path or None if behind else None
        return pair.norm if pair is not None and pair.norm and pair.use_folded else watch.partner


def _all(changes: list[Repair]) -> Repair | None:
    def change_all(model: nn.Module) -> None:
        for change in changes:
            change(model)

    return change_all if changes else None


def _rounded(output: Any, grid: GridUse) -> Any:
    if not isinstance(output, Tensor):
        return output
    return torch.fake_quantize_per_tensor_affine(output.float(), grid.scale, grid.zero_point, grid.first, grid.last)
